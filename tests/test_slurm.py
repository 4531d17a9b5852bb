"""Runs on a real Slurm: two nodes of eight fake GPUs on this machine, shards that are real pytest sessions.

Their suite has an engine and a driver of GPUs that answer at once; what else happens in a test is done to the processes,
the nodes and the commands, as it would happen on a cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
from engine_sessions import skip_if_ignored
from filelock import FileLock
from slurm_cluster import Cluster

PATIENCE = 120.0  # seconds, on a machine that does other things too

# As an H200 node answers, and an engine that takes no time. What a file in `faults` of the name of a case says is run in its test;
# `go()` waits there for the file `go`.
CONFTEST = """
import os, signal, time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from pytest_llamaperf.engines import Run
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.traces import Trace

HERE = Path(__file__).parent

for name, answer in {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlSystemGetDriverVersion": lambda: "570.133.20",
    "nvmlDeviceGetCount": lambda: 8,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
    "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=150_754_820_096, free=1, used=2),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0,
    "nvmlDeviceGetUUID": lambda handle: f"GPU-{os.environ.get('SLURMD_NODENAME')}-{handle}",
}.items():
    setattr(pynvml, name, answer)


class Engine:
    source = Source.MEASURED

    def run(self, workload):
        return Run(tuple(Trace(0.0, i + 0.5, i + 1.0, workload.isl, workload.osl) for i in range(workload.requests)))

    def close(self):
        pass


def pytest_llamaperf_engines():
    return {"tensorrt-llm": lambda spec: Engine()}


def pytest_runtest_call(item):
    *_, layout, workload = item.callspec.id.split("/")
    case = f"{layout}-{workload}"
    with open(HERE / "devices", "a") as file:
        print(case, os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"], file=file)
    fault = HERE / "faults" / case
    if fault.exists():
        (HERE / f"at-{case}").write_text(os.environ["SLURMD_NODENAME"])
        exec(fault.read_text())


def go():
    while not (HERE / "go").exists():
        time.sleep(0.05)
"""

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

CASES = dict(model="llama-3.1-8b", recipe="modelopt-fp8")


@pytest.mark.cases(**CASES, layout=LAYOUTS, workload=[f"max-throughput-{isl}-8" for isl in range(16, 16 + EACH)])
def test_it(case):
    pass
"""

MEASURED = """

@pytest.mark.cases(**CASES, layout="tp8", workload=[f"max-throughput-{isl}-8" for isl in range(16, 20)])
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""

# A shard may take 45 s, or what a guess says. Nodes are shared, because the two of them are one machine.
PROFILE = """
schema: 1
partition: h200
gres: gpu:h200
share_nodes: true
sbatch: [--cpus-per-gpu=2]
minutes: {factor: 1, least: 0.75}
look: 0.5
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if problem := slurm_cluster.why_not():
        pytest.skip(problem)
    with slurm_cluster.cluster() as made:
        yield made


class Run:
    """A suite in a folder of its own, planned; what is started there knows the cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.results = folder, folder / "results of a run"
        self.environment = {
            **os.environ, "SLURM_CONF": str(cluster.configuration), "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))),
        }  # fmt: skip
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "faults").mkdir()
        (folder / "slurm.yaml").write_text(PROFILE)

    def plan(self, *layouts: str, each: int = 1, more: str = "") -> None:
        suite = SUITE.replace("LAYOUTS", repr(layouts)).replace("EACH", str(each))
        (self.folder / "test_cases.py").write_text(suite + more)
        # Plugins that take longer to import than a shard takes.
        others = ["-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:xdist"]
        options = ["test_cases.py", "--gpu=h200", "--engine=tensorrt-llm", "--restarts=1", *others]
        planned = self.command("plan", "--results", str(self.results), *options)
        assert planned.returncode == 0, planned.stdout + planned.stderr

    def fault(self, case: str, program: str) -> None:
        (self.folder / "faults" / case).write_text(program)

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest_llamaperf.commands", *arguments], cwd=self.folder, text=True,
            env={**self.environment, **more}, capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def begun(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """`llamaperf run`, whose output goes to `run.log`."""
        command = [sys.executable, "-m", "pytest_llamaperf.commands", *self.run_command, *more]
        with (self.folder / "run.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def run_command(self) -> list[str]:
        return ["run", str(self.results), "--on", "slurm", "--profile", "slurm.yaml"]

    @property
    def log(self) -> str:
        return (self.folder / "run.log").read_text()

    def at(self, case: str) -> str:
        """The node that a fault of a case has begun on, empty before."""
        path = self.folder / f"at-{case}"
        return path.read_text() if path.exists() else ""

    @property
    def merged(self) -> dict[str, Any]:
        return dict(json.loads((self.results / "run.json").read_text()))

    def is_locked(self) -> bool:
        lock = FileLock(self.results / ".lock")
        with contextlib.suppress(TimeoutError), lock.acquire(timeout=0):
            return False
        return True


@pytest.fixture
def run(tmp_path: Path, cluster: Cluster) -> Iterator[Run]:
    yield Run(tmp_path, cluster)
    cluster.ask("scancel", "--user=root")
    wait_for(lambda: not cluster.live_jobs(), "jobs end")
    for node in ("n1", "n2"):
        with contextlib.suppress(subprocess.CalledProcessError):  # refused for a node that is up
            cluster.resume(node)


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)


def assert_nothing_left(cluster: Cluster, run: Run) -> None:
    assert cluster.live_jobs() == []
    wait_for(lambda: not cluster.processes(), "processes of jobs end")
    assert not run.is_locked()


def test_forty_shards_with_one_killed_one_that_hangs_and_a_drained_node(cluster: Cluster, run: Run) -> None:
    run.plan("tp1", "tp2", "tp4", each=12, more=MEASURED)
    run.fault("tp4-max-throughput-16-8", "time.sleep(3600)")
    run.fault("tp4-max-throughput-17-8", "go(); os.kill(os.getpid(), signal.SIGKILL)")

    with run.begun() as process:
        wait_for(lambda: run.at("tp4-max-throughput-17-8"), "the shard that is killed has begun")
        stays = run.at("tp4-max-throughput-17-8")
        drained = {"n1": "n2", "n2": "n1"}[stays]
        cluster.drain(drained, "a test of cooling")
        (run.folder / "go").touch()
        status = process.wait(PATIENCE)

    assert status == 3, run.log
    outcomes = [test["outcome"] for test in run.merged["tests"]]
    assert (len(outcomes), outcomes.count("passed"), outcomes.count("skipped")) == (38, 34, 4)
    reasons = [reason for reason in run.merged["decision"]["reasons"] if reason.startswith("missing")]
    assert len(reasons) == 2
    hanging, killed = sorted(reasons, key=lambda reason: "SIGKILL" in reason)
    assert re.search(r"tp4/\w+: ended early \(SIGTERM\), .*; it was told to end at its time limit on n[12]", hanging)
    assert f"it was ended by SIGKILL on {stays}; no other node is open to try it again ({drained} drain" in killed
    assert "a test of cooling" in killed
    assert f"node     {drained} drain" in run.log
    assert "in 40 shards, 2 of which are no evidence" in run.log
    junit = (run.results / "junit.xml").read_text()
    assert junit.count('classname="llamaperf.shard"') == 2
    assert_nothing_left(cluster, run)
    assert_devices_were_whole(run)


def assert_devices_were_whole(run: Run) -> None:
    """Every shard had as many GPUs as its layout says."""
    lines = (run.folder / "devices").read_text().splitlines()
    for line in lines:
        case, _, devices = line.split()
        assert len(devices.split(",")) == int(case.split("-")[0].removeprefix("tp")), line


def test_a_shard_whose_node_fails_is_tried_on_the_other(cluster: Cluster, run: Run) -> None:
    run.plan("tp1", each=2)
    run.fault("tp1-max-throughput-16-8", "go()")

    with run.begun() as process:
        wait_for(lambda: run.at("tp1-max-throughput-16-8"), "the shard has begun")
        failed = run.at("tp1-max-throughput-16-8")
        (run.folder / "at-tp1-max-throughput-16-8").unlink()
        cluster.fail(failed)
        (run.folder / "go").touch()
        status = process.wait(PATIENCE)

    assert status == 0, run.log
    assert f"its node {failed} failed; it is tried once more on another node" in run.log
    assert run.at("tp1-max-throughput-16-8") == {"n1": "n2", "n2": "n1"}[failed]
    assert [test["outcome"] for test in run.merged["tests"]] == ["passed", "passed"]
    assert_nothing_left(cluster, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_whatever_stops_the_run_cancels_its_jobs_and_it_goes_on_later(
    cluster: Cluster, run: Run, number: signal.Signals
) -> None:
    skip_if_ignored(number)
    run.plan("tp1", each=3)
    run.fault("tp1-max-throughput-17-8", "time.sleep(3600)")

    with run.begun() as process:
        wait_for(lambda: run.at("tp1-max-throughput-17-8") and run.log.count("ended ") == 2, "two shards are done")
        process.send_signal(number)
        status = process.wait(PATIENCE)

    assert status == 3
    assert "all jobs of this run are cancelled" in run.log
    assert "interrupted; 1 shard left: `llamaperf run" in run.log
    assert_nothing_left(cluster, run)
    (run.folder / "faults" / "tp1-max-throughput-17-8").unlink()

    again = run.command(*run.run_command)

    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("ended ") == 1
    assert "3 passed, in 3 shards" in again.stdout


def test_a_run_that_is_killed_leaves_jobs_that_end_and_merge_by_themselves(cluster: Cluster, run: Run) -> None:
    run.plan("tp1", each=2)
    run.fault("tp1-max-throughput-16-8", "go()")

    with run.begun() as process:
        wait_for(lambda: run.at("tp1-max-throughput-16-8"), "the shard has begun")
        process.kill()
        process.wait()
    again = run.command(*run.run_command)
    (run.folder / "go").touch()
    wait_for(lambda: not cluster.live_jobs(), "all jobs end")

    assert again.returncode == 2
    assert re.search(r"jobs? of this run in Slurm's queue already \(\d+", again.stderr)
    assert [test["outcome"] for test in run.merged["tests"]] == ["passed", "passed"]
    assert_nothing_left(cluster, run)


def test_detached_jobs_merge_by_themselves(cluster: Cluster, run: Run) -> None:
    run.plan("tp1", each=2)
    run.fault("tp1-max-throughput-16-8", "os.kill(os.getpid(), signal.SIGKILL)")

    begun = run.command(*run.run_command, "--detach")
    wait_for(lambda: not cluster.live_jobs(), "all jobs end")

    assert begun.returncode == 0, begun.stderr
    assert "squeue --name=llamaperf-" in begun.stdout
    assert [test["outcome"] for test in run.merged["tests"]] == ["passed"]
    assert "1 of which is no evidence" in (run.results / "slurm" / "merge.log").read_text()
    assert_nothing_left(cluster, run)


def test_a_script_can_be_submitted_by_hand(cluster: Cluster, run: Run) -> None:
    run.plan("tp2")
    assert run.command(*run.run_command).returncode == 0
    script = next((run.results / "slurm").glob("0001-*.sh"))
    output = next((run.results / "shards").glob("*/output.log"))
    output.unlink()

    cluster.ask("sbatch", str(script))
    wait_for(lambda: not cluster.live_jobs(), "the job ends")

    assert "1 passed" in output.read_text()


# PMIx of two nodes that are one machine wants one folder twice; and there is no TensorRT-LLM. The rest is as it is.
SRUN = """#!/usr/bin/env bash
echo "$@" > {folder}/srun
exec {srun} "${{@/--mpi=pmix/--mpi=none}}"
"""
LAUNCH = """#!/usr/bin/env bash
echo "$SLURMD_NODENAME $SLURM_PROCID" >> {folder}/ranks
[ "$SLURM_PROCID" != 0 ] || exec "$@"
"""


def test_a_shard_over_two_nodes_is_launched_once_with_a_process_for_each_gpu(cluster: Cluster, run: Run) -> None:
    programs = run.folder / "programs"
    programs.mkdir()
    srun = shutil.which("srun")
    for name, text in (("srun", SRUN), ("trtllm-llmapi-launch", LAUNCH)):
        (programs / name).write_text(text.format(folder=run.folder, srun=srun))
        (programs / name).chmod(0o755)
    run.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    run.plan("tp8-pp2")

    done = run.command(*run.run_command)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, in 1 shard" in done.stdout
    assert "--mpi=pmix" in (run.folder / "srun").read_text()
    ranks = sorted(line.split()[0] for line in (run.folder / "ranks").read_text().splitlines())
    assert ranks == ["n1"] * 8 + ["n2"] * 8
    assert len((run.folder / "devices").read_text().splitlines()) == 1
    assert_nothing_left(cluster, run)


def test_without_slurm_it_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    run.plan("tp1")

    found = run.command(*run.run_command, PATH=str(tmp_path))

    assert found.returncode == 2
    assert "--on slurm: sbatch, squeue, scancel, sinfo not on the PATH" in found.stderr
    assert "slurm-client in Debian" in found.stderr


def test_a_cluster_that_does_not_answer_is_told(run: Run, tmp_path: Path) -> None:
    run.plan("tp1")
    shutil.copy(run.environment["SLURM_CONF"], tmp_path / "other.conf")
    text = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", (tmp_path / "other.conf").read_text())
    (tmp_path / "other.conf").write_text(f"{text}\nMessageTimeout=1\n")

    found = run.command(*run.run_command, SLURM_CONF=str(tmp_path / "other.conf"))

    assert found.returncode == 2
    assert "--on slurm: this machine reaches no cluster: sinfo ended with 1" in found.stderr


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ("schema: 1\npartiton: h200\n", "slurm.yaml:2: unknown key 'partiton'; did you mean 'partition'?"),
        ("schema: 1\npartition: h100\n", "slurm.yaml:2: no partition 'h100' here; did you mean 'h200'?"),
        ("schema: 1\nsbatch: [--zork]\n", "unrecognized option '--zork'"),
    ],
)
def test_a_profile_that_is_wrong_starts_nothing(cluster: Cluster, run: Run, profile: str, problem: str) -> None:
    run.plan("tp1")
    (run.folder / "slurm.yaml").write_text(profile)

    found = run.command(*run.run_command)

    assert found.returncode == 2
    assert problem in found.stderr
    assert "Traceback" not in found.stderr
    assert_nothing_left(cluster, run)


def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left(cluster: Cluster, run: Run) -> None:
    run.plan("tp1")
    (run.results / "slurm").write_text("in the place of the folder of scripts")

    found = run.command(*run.run_command)

    assert found.returncode == 2
    assert re.search(r"results of a run/slurm/0001-.*: cannot be written: ", found.stderr)
    assert_nothing_left(cluster, run)


def test_a_shard_that_needs_more_gpus_than_there_are_starts_nothing(cluster: Cluster, run: Run) -> None:
    run.plan("tp1", "tp8-pp4")

    found = run.command(*run.run_command)

    assert found.returncode == 2
    assert "needs 32 GPUs, and the partition h200 has 2 nodes with 8 at most" in found.stderr
    assert_nothing_left(cluster, run)
