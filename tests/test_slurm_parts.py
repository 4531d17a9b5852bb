"""What is decided about a run on Slurm without asking it: profiles, nodes for shards, scripts, what the end of a job means."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.scaling.contract import Campaign, End
from pytest_llamaperf.scaling.manifest import ACCURACY, PERFORMANCE, About, Manifest, Shard
from pytest_llamaperf.scaling.slurm.ending import ending
from pytest_llamaperf.scaling.slurm.fitting import ENDING_SECONDS, Cluster, Seat
from pytest_llamaperf.scaling.slurm.following import in_turn
from pytest_llamaperf.scaling.slurm.profiles import Merging, Minutes, Profile, read_profile
from pytest_llamaperf.scaling.slurm.scheduler import (
    Job,
    NoAnswer,
    Node,
    Refused,
    Slurm,
    TooManyJobs,
    gpus_of,
    minutes_of,
    nodes_of,
)
from pytest_llamaperf.scaling.slurm.scripts import merge_script, shard_script

ABOUT = About(
    gpu="h200", engine="tensorrt-llm", under_test="tensorrt-llm", versions={}, directory="/suites of us", root="/suites of us",
    baselines="/suites of us/baselines", gate=True, gate_file=None, waivers=None,
)  # fmt: skip
PREDICTED = dataclasses.replace(ABOUT, engine="predicted")
KEY = "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/5f0c2a9e"


def shard(key: str = KEY, devices: int = 1, minutes: float = 5.0, **more: object) -> Shard:
    told = {"engines": (key,), "tests": ("test_a.py::test_it",), "kind": PERFORMANCE, "basis": "a guess", **more}
    return Shard(key=key, devices=devices, minutes=minutes, **told)  # type: ignore[arg-type]


def node(name: str, gpus: int = 8, state: str = "idle", partition: str = "h200", **more: object) -> Node:
    told = {"default": True, "minutes": 240.0, "why": "", **more}
    return Node(name, partition, state=state, gpus=gpus, **told)  # type: ignore[arg-type]


def campaign(*shards: Shard, about: About = ABOUT, path: Path = Path("/results of us")) -> Campaign:
    return Campaign(Manifest("8b9f0a5e-1111", "2026-11-26T10:00:00Z", ("suites/", "-k", "a or b"), about, shards), path)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    return path


# Profiles.

WHOLE = """
schema: 1
partition: h200
account: inference
qos: release
gres: gpu:h200
exclude: [node07, node08]
share_nodes: true
sbatch: [--cpus-per-gpu=12, -Cnvlink]
srun: [--container-image=/images/a b.sqsh]
setup: [module load cuda]
minutes: {factor: 2, least: 10.5}
merge: {partition: cpu, sbatch: [--mem=4G]}
look: 30
"""


def test_a_profile_is_read(tmp_path: Path) -> None:
    profile = read_profile(written(tmp_path, WHOLE))

    assert dataclasses.replace(profile, document=None) == Profile(
        partition="h200",
        account="inference",
        qos="release",
        gres="gpu:h200",
        exclude=("node07", "node08"),
        share_nodes=True,
        sbatch=("--cpus-per-gpu=12", "-Cnvlink"),
        srun=("--container-image=/images/a b.sqsh",),
        setup=("module load cuda",),
        minutes=Minutes(2.0, 10.5),
        merge=Merging("cpu", ("--mem=4G",)),
        look=30.0,
    )


def test_the_profile_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]

    profile = read_profile(written(tmp_path, text))

    assert set(text.replace("\n ", "").split()) >= {f"{field.name}:" for field in dataclasses.fields(Profile)[:-1]}
    assert (profile.minutes, profile.look) == (Minutes(), Profile.look)


def test_a_profile_may_say_nothing(tmp_path: Path) -> None:
    assert dataclasses.replace(read_profile(written(tmp_path, "schema: 1\n")), document=None) == Profile()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("schema: 1\npartitoin: h200\n", r"slurm.yaml:2: unknown key 'partitoin'; did you mean 'partition'\?"),
        ("schema: 1\nminutes:\n  leats: 3\n", r"slurm.yaml:3: minutes: unknown key 'leats'; did you mean 'least'\?"),
        ("schema: 1\nmerge:\n  account: a\n", r"slurm.yaml:3: merge: unknown key 'account'"),
        ("schema: 2\n", "slurm.yaml:1: schema 2 is not known here"),
        ("partition: h200\n", "'schema' is missing"),
        ("schema: 1\npartition: [a, b]\n", "slurm.yaml:2: 'partition' must be text"),
        ("schema: 1\npartition: a b\n", "slurm.yaml:2: 'partition' must be one word, found 'a b'"),
        ("schema: 1\nexclude: ['node[01-03]']\n", r"slurm.yaml:2: 'exclude' is a list of single names"),
        ("schema: 1\nsbatch: [--constraint nvlink, nvlink]\n", "slurm.yaml:2: 'sbatch' is a list of options"),
        ("schema: 1\nsbatch:\n- --time=30\n", "'--time=30' cannot stand in 'sbatch': write it as 'minutes'"),
        ("schema: 1\nsbatch: [--partition=x]\n", "cannot stand in 'sbatch': write it as 'partition'"),
        ("schema: 1\nsbatch: [--part=x]\n", "cannot stand in 'sbatch': write it as 'partition'"),
        ("schema: 1\nsbatch: [-px]\n", "cannot stand in 'sbatch': write it as 'partition'"),
        ("schema: 1\nsbatch: [--gpus=8]\n", "cannot stand in 'sbatch': write it as 'gres'"),
        ("schema: 1\nsbatch: [--requeue]\n", "cannot stand in 'sbatch': every script sets it"),
        ("schema: 1\nmerge: {sbatch: [--wrap=true]}\n", "merge: '--wrap=true' cannot stand in 'sbatch'"),
        ("schema: 1\nsrun: [--mpi=none]\n", "'--mpi=none' cannot stand in 'srun': every script sets it"),
        ("schema: 1\nminutes: {factor: 0.5}\n", "'factor' must be at least 1"),
        ("schema: 1\nminutes: {least: 0}\n", "'least' is minutes, above 0"),
        ("schema: 1\nlook: 0\n", "slurm.yaml:2: 'look' is seconds, above 0"),
        ("schema: 1\nshare_nodes: sometimes\n", "'share_nodes' must be true or false"),
    ],
)
def test_a_profile_is_read_strictly(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DocumentError, match=problem):
        read_profile(written(tmp_path, text))


def test_options_that_only_begin_like_ours_are_taken(tmp_path: Path) -> None:
    text = "schema: 1\nsbatch: [--time-min=5, --nodelist=n1, --mem=0, --no-kill, --mail-type=FAIL]\n"

    assert len(read_profile(written(tmp_path, text)).sbatch) == 5


# What Slurm answers.


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gpu:h200:8(S:0-1)", 8),
        ("gpu:8", 8),
        ("gpu:a:4(S:0,2-3),nvme:2,gpu:b:2", 6),
        ("(null)", 0),
        ("nvme:2", 0),
        ("gpu:1g.10gb:7", 7),
    ],
)
def test_gpus_of_generic_resources(text: str, gpus: int) -> None:
    assert gpus_of(text) == gpus


@pytest.mark.parametrize(
    ("text", "minutes"), [("30:00", 30), ("4:00:00", 240), ("2-12:00:30", 3600.5), ("infinite", float("inf"))]
)
def test_time_limits(text: str, minutes: float) -> None:
    assert minutes_of(text) == minutes


def test_names_of_nodes_are_spelled_out() -> None:
    assert nodes_of("n[01-03,7],m2,a[9-10]b") == ["n01", "n02", "n03", "n7", "m2", "a9b", "a10b"]
    assert nodes_of("") == []


@pytest.mark.parametrize(
    ("state", "is_open"),
    [
        ("idle", True),
        ("mixed", True),
        ("allocated", True),
        ("completing", True),
        ("idle~", True),
        ("powering_up#", True),
        ("idle*", False),
        ("drained", False),
        ("draining", False),
        ("down", False),
        ("down*", False),
        ("maint", False),
        ("reserved", True),
        ("inval", False),
    ],
)
def test_which_nodes_get_jobs(state: str, is_open: bool) -> None:
    assert node("n1", state=state).open is is_open


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Slurm]:
    """A command of that name that runs a line of shell."""

    def say(line: str) -> Slurm:
        program = tmp_path / "sbatch"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return Slurm()

    return say


def test_the_id_of_a_job_is_read_also_where_there_are_several_clusters(sbatch: Callable[[str], Slurm]) -> None:
    assert sbatch("echo '4711;east'").submit(Path("a.sh")) == "4711"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", NoAnswer),
        ("Batch job submission failed: Socket timed out on send/recv operation", NoAnswer),
        ("AssocMaxSubmitJobLimit", TooManyJobs),
        (
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)",
            TooManyJobs,
        ),
        ("Batch job submission failed: Invalid account or account/partition combination specified", Refused),
        ("Batch job submission failed: Invalid qos specification", Refused),
    ],
)
def test_what_sbatch_says_tells_what_to_do(sbatch: Callable[[str], Slurm], said: str, error: type[Exception]) -> None:
    slurm = sbatch(f'echo "sbatch: error: {said}" >&2; exit 1')

    with pytest.raises(error, match=re.escape(said)) as raised:
        slurm.submit(Path("a.sh"))

    assert raised.type is error


def test_an_answer_that_is_no_id_is_no_answer(sbatch: Callable[[str], Slurm]) -> None:
    with pytest.raises(NoAnswer, match="answered 'Submitted batch job' and no id"):
        sbatch("echo Submitted batch job").submit(Path("a.sh"))


def test_within_a_job_its_wishes_are_not_those_of_new_jobs(
    sbatch: Callable[[str], Slurm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    monkeypatch.setenv("SLURM_CONF", "/here")
    slurm = sbatch('[ -z "$SLURM_MEM_PER_NODE" ] && [ "$SLURM_CONF" = /here ] && echo 1')

    assert slurm.submit(Path("a.sh")) == "1"


def test_ctrl_c_does_not_reach_a_submission(sbatch: Callable[[str], Slurm]) -> None:
    slurm = sbatch('[ "$(ps -o sid= -p $$ | tr -d " ")" = $$ ] && echo 1')

    assert slurm.submit(Path("a.sh")) == "1"


# Nodes for shards.

TWO = Cluster.of(Profile(), [node("n1"), node("n2")])


@pytest.mark.parametrize(("devices", "nodes", "gpus"), [(1, 1, 1), (8, 1, 8), (16, 2, 8), (12, 2, 6), (10, 2, 5)])
def test_a_shard_has_the_fewest_nodes_that_share_it_evenly(devices: int, nodes: int, gpus: int) -> None:
    seat = TWO.seat(shard(devices=devices), ABOUT, Profile())

    assert (seat.nodes, seat.gpus) == (nodes, gpus)


@pytest.mark.parametrize("devices", [9, 11, 17, 32])
def test_more_gpus_than_there_are_are_refused(devices: int) -> None:
    with pytest.raises(
        UsageError, match=rf"tp1/5f0c2a9e needs {devices} GPUs, and the partition h200 has 2 nodes with 8"
    ):
        TWO.seat(shard(devices=devices), ABOUT, Profile())


def test_large_nodes_are_counted_on_their_own() -> None:
    mixed = Cluster.of(Profile(), [node("n1", 4), node("n2", 4), node("n3", 8)])

    assert mixed.seat(shard(devices=8), ABOUT, Profile()).nodes == 1
    assert (mixed.seat(shard(devices=12), ABOUT, Profile()).nodes, 4) == (3, 4)
    with pytest.raises(UsageError, match="needs 16 GPUs"):
        mixed.seat(shard(devices=16), ABOUT, Profile())


def test_a_partition_without_gpus_is_refused_where_they_are_needed() -> None:
    bare = Cluster.of(Profile(), [node("n1", 0)])

    assert bare.seat(shard(devices=3), PREDICTED, Profile()) == Seat(1, 0, 3, 30.0)
    with pytest.raises(UsageError, match="the partition h200 has no GPUs"):
        bare.seat(shard(), ABOUT, Profile())


def test_time_is_generous_and_within_the_partition() -> None:
    minutes = [TWO.seat(shard(minutes=expected), ABOUT, Profile()).minutes for expected in (1.0, 20.0, 100.0)]

    assert minutes == [30.0, 60.0, 236.0]
    assert TWO.seat(shard(minutes=100.0), ABOUT, Profile()).job_minutes == 240
    with pytest.raises(UsageError, match=r"is expected to take 237 minutes \(a guess\), and jobs in .* end after 240"):
        TWO.seat(shard(minutes=237.0), ABOUT, Profile())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("partition: h20", r"slurm.yaml:2: no partition 'h20' here; did you mean 'h200'\? known: cpu, h200"),
        ("partition: 'h200,zz'", r"slurm.yaml:2: no partition 'zz' here"),
        ("merge: {partition: cpus}", r"slurm.yaml:2: no partition 'cpus' here; did you mean 'cpu'\?"),
        ("exclude: [n3]", r"slurm.yaml:2: no node 'n3' here"),
        ("exclude: [n1, n2]", "the partition h200 has no node that is not excluded"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    found = [node("n1"), node("n2"), node("c1", 0, partition="cpu", default=False)]

    with pytest.raises(UsageError, match=problem):
        Cluster.of(read_profile(written(tmp_path, f"schema: 1\n{text}\n")), found)


def test_without_a_default_partition_one_is_asked_for() -> None:
    with pytest.raises(
        UsageError, match="no default partition; name one in a profile, with --profile FILE; known: h200"
    ):
        Cluster.of(Profile(), [node("n1", default=False)])


def test_another_node_is_one_that_is_open_large_enough_and_not_avoided() -> None:
    cluster = Cluster.of(Profile(), [node("n1"), node("n2", state="drained"), node("n3", gpus=4)])
    four, eight = (cluster.seat(shard(devices=devices), ABOUT, Profile()) for devices in (4, 8))

    assert cluster.has_another(four, ["n1"])
    assert not cluster.has_another(eight, ["n1"])
    assert not cluster.has_another(four, ["n1", "n3"])
    assert [closed.name for closed in cluster.closed] == ["n2"]


# The command.


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--profile", "slurm.yaml"], "--profile says nothing about --on local"),
        (["--detach"], "--detach says nothing about --on local"),
        (["--on", "slurm", "--slots", "2"], "--slots says nothing about --on slurm"),
        (["--on", "slurm", "--share"], "--share says nothing about --on slurm; write share_nodes: true in a profile"),
    ],
)
def test_options_of_another_place_are_refused(options: list[str], problem: str) -> None:
    result = CliRunner().invoke(main, ["run", "out", *options], prog_name="llamaperf")

    assert result.exit_code == 2
    assert problem in result.output


# Scripts.


def test_a_script_says_all_it_needs_and_is_bash() -> None:
    made = campaign(shard(devices=4))
    only = made.manifest.shards[0]
    profile = Profile(
        partition="h200", account="team x", exclude=("n7", "n8"), sbatch=("--constraint=a b",), setup=("module load cuda",)
    )  # fmt: skip

    script = shard_script(made, only, Seat(1, 4, 1, 30.0), profile)

    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = {shlex.split(line.removeprefix("#SBATCH "))[0] for line in lines if line.startswith("#SBATCH")}
    assert directives >= {
        "--job-name=llamaperf-8b9f0a5e", "--no-requeue", "--partition=h200", "--account=team x", "--time=34", "--nodes=1",
        "--ntasks-per-node=1", "--gres=gpu:4", "--exclusive", "--exclude=n7,n8", "--constraint=a b",
        f"--comment=run 8b9f0a5e-1111 shard {KEY}", f"--output={made.folder(only)}/output.log",
    }  # fmt: skip
    body = lines[lines.index("set -euo pipefail") :]
    assert body[1:4] == ["cd '/suites of us'", "export LLAMAPERF_RUN=8b9f0a5e-1111", *[body[3]]]
    assert "module load cuda" in body
    assert script.endswith(shlex.join(made.command(only)) + "\n")
    assert f"exec timeout --foreground --kill-after={ENDING_SECONDS} 1800 " in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=True).returncode == 0


@pytest.mark.parametrize(
    ("kind", "share", "alone"), [(PERFORMANCE, False, True), (PERFORMANCE, True, False), (ACCURACY, False, False)]
)
def test_shards_that_measure_have_their_node_to_themselves(kind: str, share: bool, alone: bool) -> None:
    made = campaign(shard(kind=kind))

    script = shard_script(made, made.manifest.shards[0], Seat(1, 1, 1, 30.0), Profile(share_nodes=share))

    assert ("#SBATCH --exclusive" in script) is alone


def test_a_shard_over_several_nodes_is_launched_with_a_process_for_each_gpu() -> None:
    made = campaign(shard(devices=16))

    script = shard_script(made, made.manifest.shards[0], Seat(2, 8, 1, 30.0), Profile(srun=("--container-image=a b",)))

    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --gres=gpu:8\n" in script
    assert "srun --mpi=pmix '--container-image=a b' " in script
    assert f" -m pytest_llamaperf.commands launch timeout --foreground --kill-after={ENDING_SECONDS} 1800 " in script


def test_options_of_srun_are_for_shards_of_one_node_too() -> None:
    made = campaign(shard())

    script = shard_script(made, made.manifest.shards[0], Seat(1, 1, 1, 30.0), Profile(srun=("--container-image=x",)))

    assert "exec srun --ntasks=1 --container-image=x timeout " in script
    assert "launch" not in script


def test_slots_of_a_cpu_are_cpus() -> None:
    made = campaign(shard(devices=3), about=PREDICTED)

    script = shard_script(made, made.manifest.shards[0], Seat(1, 0, 3, 30.0), Profile())

    assert "--cpus-per-task=3" in script
    assert "--gres" not in script


def test_merging_needs_no_gpu_and_may_have_a_partition_of_its_own() -> None:
    script = merge_script(campaign(shard()), Profile(partition="h200", merge=Merging("cpu", ("--mem=4G",))))

    assert "--partition=cpu" in script
    assert "--mem=4G" in script
    assert "--gres" not in script
    assert script.endswith("merge '/results of us'\n")


def test_a_percent_sign_in_a_path_is_no_number_of_a_job() -> None:
    made = campaign(shard(), path=Path("/results/100%j"))

    assert "--output=/results/100%%j/shards/" in shard_script(
        made, made.manifest.shards[0], Seat(1, 1, 1, 1.0), Profile()
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 9))), unique_by=lambda pair: pair[0]))
def test_every_shard_is_submitted_once_and_after_what_it_waits_for(drawn: list[tuple[int, set[int]]]) -> None:
    """What a manifest allows: never in a circle, here by waiting only for smaller numbers."""
    shards = [
        shard(str(number), after=tuple(str(each) for each in sorted(others) if each < number))
        for number, others in drawn
    ]

    order = [each.key for each in in_turn(shards)]

    assert sorted(order) == sorted(each.key for each in shards)
    for each in shards:
        for other in each.after:
            assert other not in order or order.index(other) < order.index(each.key)


# What the end of a job means.

EXITED = 256


@pytest.mark.parametrize(
    ("job", "done", "end", "words"),
    [
        (Job("7", "COMPLETED", 0, "n1"), True, End.DONE, ""),
        (Job("7", "FAILED", 1 * EXITED, "n1"), True, End.DONE, ""),
        (Job("7", "FAILED", 5 * EXITED, "n1"), True, End.DONE, ""),
        (None, True, End.DONE, ""),
        (None, False, End.LOST, "Slurm has forgotten its job"),
        (Job("7", "NODE_FAIL", 0, "n1"), False, End.LOST, "its node n1 failed"),
        (Job("7", "NODE_FAIL", 0, "n1"), True, End.LOST, "its node n1 failed"),
        (Job("7", "BOOT_FAIL", 0, "n1"), False, End.LOST, "its node n1 failed"),
        (Job("7", "PREEMPTED", 0, "n1"), False, End.LOST, "pushed it aside on n1"),
        (Job("7", "FAILED", 9, "n1", "JobLaunchFailure"), False, End.LOST, "ended by SIGKILL on n1"),
        (Job("7", "FAILED", 4021, "n1", "JobLaunchFailure"), False, End.LOST, "n1 could not start it"),
        (Job("7", "FAILED", 127 * EXITED, "n1"), False, End.LOST, "status 127, and no report of it is seen here"),
        (Job("7", "COMPLETED", 0, "n1"), False, End.LOST, "is its folder on a file system that all nodes share"),
        (Job("7", "FAILED", 2 * EXITED, "n1"), False, End.LOST, "status 2, and no report of it"),
        (Job("7", "FAILED", 3 * EXITED, "n1"), True, End.BROKEN, "pytest ended on n1 with status 3"),
        (Job("7", "FAILED", 4 * EXITED, "n1"), False, End.BROKEN, "pytest ended on n1 with status 4"),
        (Job("7", "FAILED", 124 * EXITED, "n1"), True, End.BROKEN, "told to end at its time limit on n1"),
        (Job("7", "FAILED", 124 * EXITED, "n1"), False, End.BROKEN, "told to end at its time limit on n1"),
        (Job("7", "FAILED", 137 * EXITED, "n1"), False, End.BROKEN, "did not in 120 s, and was killed"),
        (Job("7", "TIMEOUT", 0, "n1"), False, End.BROKEN, "Slurm ended it on n1"),
        (Job("7", "OUT_OF_MEMORY", 9, "n1"), False, End.BROKEN, "more memory of n1 than its job was given"),
        (Job("7", "CANCELLED", 0, "n1"), False, End.BROKEN, "its job 7 was cancelled"),
        (Job("7", "FAILED", 1, "", "BadConstraints"), False, End.BROKEN, "Slurm gave it no node: BadConstraints"),
    ],
)
def test_what_the_end_of_a_job_means(job: Job | None, done: bool, end: End, words: str) -> None:
    found = ending(job, done=done, reported=done)

    assert found.end is end
    assert words in found.reason
    assert bool(found.reason) is (end is not End.DONE)


@pytest.mark.parametrize(
    ("job", "end"),
    [
        (Job("7", "FAILED", 2 * EXITED, "n1"), End.BROKEN),
        (Job("7", "COMPLETED", 0, "n1"), End.BROKEN),
        (Job("7", "FAILED", 124 * EXITED, "n1"), End.BROKEN),
        (Job("7", "FAILED", 9, "n1"), End.LOST),
        (Job("7", "NODE_FAIL", 0, "n1"), End.LOST),
    ],
)
def test_a_part_of_the_results_is_no_second_try_unless_the_cluster_cut_it_off(job: Job, end: End) -> None:
    assert ending(job, done=False, reported=True).end is end
