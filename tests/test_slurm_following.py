"""A run on Slurm that answers as a test says: what is rare on a real cluster, and what has to hold then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from engine_sessions import skip_if_ignored
from shard_builders import campaign, leave_results, shard

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.scaling.contract import Campaign
from pytest_llamaperf.scaling.manifest import Shard
from pytest_llamaperf.scaling.slurm.fitting import Cluster
from pytest_llamaperf.scaling.slurm.following import Followed, Patience
from pytest_llamaperf.scaling.slurm.profiles import Profile
from pytest_llamaperf.scaling.slurm.scheduler import Job, NoAnswer, Node, Refused, TooManyJobs
from pytest_llamaperf.scaling.watching import Standing

QUICK = Profile(look=0.001)


class Lines:
    """Keeps what is told; `at` is called with every picture."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.pictures: list[Standing] = []
        self.at: Callable[[Standing], None] = lambda standing: None

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def show(self, standing: Standing) -> None:
        self.pictures.append(standing)
        self.at(standing)

    def close(self) -> None: ...

    def told(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Scripted:
    """A cluster of two nodes on which a job ends when it is next looked at, as `fates` of its shard say, in turn: a state
    and a status of waitpid, by default with results; the state RUNNING is another look at work. `submitted` are script and options of every job.

    `held` is for how many looks jobs wait, for a reason; `room` is how many jobs may be in the queue; `silent` how many questions in a row get no answer, `mute` how many
    submissions are done and not answered.
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.fates: dict[str, list[tuple[str, int]]] = {}
        self.submitted: list[tuple[str, tuple[str, ...]]] = []
        self.cancelled: list[str] = []
        self.held = 0
        self.room, self.silent, self.mute = 1000, 0, 0
        self.writes_results = True
        self.closed: set[str] = set()
        self._jobs: dict[str, Job] = {}
        self._shards: dict[str, Shard] = {}
        self._after: dict[str, list[str]] = {}

    def submit(self, script: Path, options: Sequence[str] = ()) -> str:
        if sum(not job.ended for job in self._jobs.values()) >= self.room:
            raise TooManyJobs("job submit limit")
        id = str(len(self._jobs) + 1)
        self.submitted.append((script.stem, tuple(options)))
        self._jobs[id] = Job(id, "PENDING")
        for option in options:
            if option.startswith("--dependency=afterany:"):
                self._after[id] = option.split(":")[1:]
        for each in self.campaign.manifest.shards:
            if self.campaign.folder(each).name == script.stem:
                self._shards[id] = each
        if self.mute:
            self.mute -= 1
            raise NoAnswer("sbatch did not answer")
        return id

    def jobs(self, name: str) -> dict[str, Job]:
        assert name == "llamaperf-run-1"
        if self.silent:
            self.silent -= 1
            raise NoAnswer("squeue ended with 1: Unable to contact slurm controller")
        if self.held:
            self.held -= 1
            self._jobs |= {id: Job(id, "PENDING", reason="PartitionTimeLimit") for id in self.live}
            return dict(self._jobs)
        for id, job in self._jobs.items():
            if job.state == "COMPLETING":
                self._jobs[id] = Job(id, "CANCELLED")
            elif job.state == "RUNNING":
                self._jobs[id] = self._ended(id)
            elif job.state == "PENDING" and not set(self._after.get(id, ())) & set(self.live):
                self._jobs[id] = Job(id, "RUNNING", 0, "n1")
        return dict(self._jobs)

    def _ended(self, id: str) -> Job:
        shard = self._shards.get(id)
        if shard is None:  # the job that merges
            return Job(id, "COMPLETED", 0, "n1")
        fates = self.fates.get(shard.key, [])
        if fates:
            return Job(id, *fates.pop(0), "n1")
        if self.writes_results:
            leave_results(self.campaign, shard)
        return Job(id, "COMPLETED", 0, "n1")

    def cancel(self, name: str) -> None:
        for id in [id for id, job in self._jobs.items() if not job.ended]:
            self.cancel_job(id)

    def cancel_job(self, id: str) -> None:
        """It takes one look until a job has ended."""
        if self._jobs[id].state == "COMPLETING":
            self._jobs[id] = Job(id, "CANCELLED")
        elif not self._jobs[id].ended:
            self.cancelled.append(id)
            self._jobs[id] = Job(id, "COMPLETING")

    def nodes(self) -> list[Node]:
        return [
            Node(
                name,
                "h200",
                True,
                "drained" if name in self.closed else "idle",
                8,
                240.0,
                "hot" if name in self.closed else "",
            )
            for name in ("n1", "n2")
        ]

    @property
    def live(self) -> list[str]:
        return [id for id, job in self._jobs.items() if not job.ended]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Followed, Scripted, Lines]]:
    def make(*shards: Shard, patience: Patience | None = None) -> tuple[Followed, Scripted, Lines]:
        planned = campaign(tmp_path / "out", *shards, gpu="h200")
        slurm, lines = Scripted(planned), Lines()
        cluster = Cluster.of(QUICK, slurm.nodes())
        waits = patience or Patience(silence=30.0, report=0.0, ending=5.0)
        return Followed(planned, slurm, QUICK, cluster, lines, waits), slurm, lines

    return make


Made = Callable[..., tuple[Followed, Scripted, Lines]]


def names(slurm: Scripted) -> list[str]:
    return [script for script, _ in slurm.submitted]


def test_every_shard_is_a_job_and_one_merges_after_all(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), shard("b"))

    outcome = followed.run()

    assert slurm.submitted == [("0001-a", ()), ("0002-b", ()), ("merge", ("--dependency=afterany:1:2",))]
    assert (outcome.without, outcome.left, outcome.interrupted) == ({}, (), False)
    assert [(line.split()[0], line.split()[1]) for line in lines.lines] == [
        ("started", "a"), ("started", "b"), ("ended", "a"), ("ended", "b"),
    ]  # fmt: skip
    assert lines.pictures[0].waiting == (shard("a"), shard("b"))
    assert (slurm.live, slurm.cancelled) == ([], [])


def test_what_quantizes_is_submitted_first_and_waited_for(made: Made) -> None:
    followed, slurm, _ = made(shard("large", after=("maker",)), shard("maker"))

    followed.run()

    assert slurm.submitted[:2] == [("0002-maker", ()), ("0001-large", ("--dependency=afterany:1",))]


def test_only_what_has_no_results_is_run(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))
    done = followed.campaign.manifest.shards[0]
    followed.campaign.folder(done).mkdir(parents=True)
    leave_results(followed.campaign, done)

    followed.run()

    assert names(slurm) == ["0002-b", "merge"]


def test_with_all_results_there_is_nothing_to_submit(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    leave_results(followed.campaign, shard("a"))

    outcome = followed.run()

    assert (slurm.submitted, outcome.left) == ([], ())


def test_what_the_cluster_lost_is_tried_once_more_on_another_node(made: Made) -> None:
    followed, slurm, lines = made(shard("a"))
    slurm.fates["a"] = [("NODE_FAIL", 0)]

    outcome = followed.run()

    assert slurm.submitted[2] == ("0001-a", ("--exclude=n1",))
    assert outcome.without == {}
    assert lines.told("lost     a: its node n1 failed; it is tried once more on another node")
    assert slurm.submitted[-1] == ("merge", ("--dependency=afterany:3",))
    assert slurm.live == []


def test_what_is_lost_twice_is_told_with_both_reasons(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    slurm.fates["a"] = [("NODE_FAIL", 0), ("FAILED", 9)]

    outcome = followed.run()

    reason = "its node n1 failed; tried again, it was ended by SIGKILL on n1"
    assert outcome.without == {"a": reason}
    assert followed.campaign.reason(shard("a")) == reason
    assert names(slurm).count("0001-a") == 2


def test_the_job_that_merges_is_replaced_by_one_that_waits_for_the_second_try_too(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))
    slurm.fates = {"a": [("NODE_FAIL", 0)], "b": [("RUNNING", 0)] * 4}

    followed.run()

    merges = [options for script, options in slurm.submitted if script == "merge"]
    assert merges == [("--dependency=afterany:1:2",), ("--dependency=afterany:2:4",)]
    assert slurm.cancelled == ["3"]


def test_a_second_try_keeps_away_from_what_the_profile_excludes_too(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))
    followed.profile = Profile(look=0.001, exclude=("n7",))
    slurm.fates["b"] = [("NODE_FAIL", 0)]

    followed.run()

    assert slurm.submitted[-2] == ("0002-b", ("--exclude=n7,n1",))


def test_every_shard_has_a_script_of_its_own(made: Made) -> None:
    followed, _, _ = made(shard("a", devices=1), shard("b", devices=4))

    followed.run()

    folder = followed.campaign.path / "slurm"
    assert "--gres=gpu:1\n" in (folder / "0001-a.sh").read_text()
    assert "--gres=gpu:4\n" in (folder / "0002-b.sh").read_text()


def test_without_another_node_nothing_is_tried_again(made: Made) -> None:
    followed, slurm, lines = made(shard("a"))
    slurm.fates["a"] = [("NODE_FAIL", 0)]
    slurm.closed = {"n2"}

    outcome = followed.run()

    assert outcome.without == {"a": "its node n1 failed; no other node is open to try it again (n2 drained: hot)"}
    assert lines.told("node     n2 drained: hot")
    assert names(slurm) == ["0001-a", "merge"]


def test_why_jobs_wait_is_told_once(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), shard("b"))
    lines.at = lambda standing: setattr(slurm, "held", 3 if len(lines.pictures) == 1 else slurm.held)

    followed.run()

    assert [line for line in lines.lines if line.startswith("waits")] == ["waits    a: PartitionTimeLimit"]


def test_whoever_is_pushed_aside_may_come_back_to_its_node(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    slurm.fates["a"] = [("PREEMPTED", 0)]

    followed.run()

    assert slurm.submitted[2] == ("0001-a", ())


@pytest.mark.parametrize("fate", [("FAILED", 124 * 256), ("OUT_OF_MEMORY", 9), ("CANCELLED", 0), ("FAILED", 4 * 256)])
def test_what_would_end_like_that_again_is_not_tried_again(made: Made, fate: tuple[str, int]) -> None:
    followed, slurm, _ = made(shard("a"))
    slurm.fates["a"] = [fate]

    outcome = followed.run()

    assert names(slurm) == ["0001-a", "merge"]
    assert list(outcome.without) == ["a"]


def test_what_an_attempt_left_is_kept_aside(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    slurm.fates["a"] = [("NODE_FAIL", 0)]

    followed.run()

    assert (followed.campaign.path / "lost" / "0001-a-1").is_dir()
    assert followed.campaign.is_done(shard("a"))


def test_a_report_may_be_seen_late(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), patience=Patience(silence=30.0, report=30.0, ending=5.0))
    slurm.writes_results = False
    lines.at = lambda standing: leave_results(followed.campaign, shard("a")) if len(lines.pictures) == 6 else None

    outcome = followed.run()

    assert outcome.without == {}
    assert names(slurm) == ["0001-a", "merge"]


def test_whoever_was_killed_is_not_waited_for(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), patience=Patience(silence=30.0, report=2.0, ending=5.0))
    slurm.fates["a"] = [("FAILED", 9)] * 2

    followed.run()

    assert len(lines.pictures) < 20


def test_a_report_that_is_never_seen_is_waited_for_only_so_long(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), patience=Patience(silence=30.0, report=0.05, ending=5.0))
    slurm.writes_results = False

    outcome = followed.run()

    assert "no report of it is seen here: is its folder on a file system that all nodes share?" in outcome.without["a"]


def test_more_jobs_than_are_allowed_wait_for_others_to_end(made: Made) -> None:
    followed, slurm, _ = made(*(shard(key) for key in "abcde"))
    slurm.room = 2

    outcome = followed.run()

    assert names(slurm) == ["0001-a", "0002-b", "0003-c", "0004-d", "0005-e", "merge"]
    assert outcome.left == ()


def test_a_limit_that_takes_none_is_told(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    slurm.room = 0

    with pytest.raises(Refused, match="job submit limit: the cluster takes 0 jobs of this run at a time"):
        followed.run()


def test_to_detach_all_must_be_taken(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))
    slurm.room = 1

    with pytest.raises(Refused, match="takes 1 jobs of this run at a time"):
        followed.run(detach=True)

    assert (slurm.live, slurm.cancelled) == ([], ["1"])


def test_detached_jobs_are_left_to_the_cluster(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))

    outcome = followed.run(detach=True)

    assert slurm.live == ["1", "2", "3"]
    assert slurm.submitted[-1] == ("merge", ("--dependency=afterany:1:2",))
    assert not outcome.interrupted


def test_jobs_that_are_queued_already_are_refused(made: Made) -> None:
    followed, slurm, _ = made(shard("a"))
    followed.run(detach=True)
    again = Followed(followed.campaign, slurm, QUICK, followed.cluster, Lines())

    with pytest.raises(
        UsageError,
        match=r"2 jobs of this run in Slurm's queue already \(1, 2\): wait .*scancel --name=llamaperf-run-1",
    ):
        again.run()

    assert slurm.live == ["1", "2"]


def test_a_slurm_that_is_silent_for_a_moment_is_tolerated(made: Made) -> None:
    followed, slurm, lines = made(shard("a"))
    lines.at = lambda standing: setattr(slurm, "silent", 3 if len(lines.pictures) == 1 else slurm.silent)

    outcome = followed.run()

    assert outcome.without == {}
    assert sum("does not answer" in line for line in lines.lines) == 1


def test_moments_of_silence_do_not_add_up(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), patience=Patience(silence=0.2, report=0.0, ending=0.2))
    slurm.fates["a"] = [("RUNNING", 0)] * 40

    def now_and_then(standing: Standing) -> None:
        if len(lines.pictures) % 8 == 0:
            slurm.silent = 1
            time.sleep(0.1)

    lines.at = now_and_then

    assert followed.run().without == {}


def test_a_slurm_that_is_silent_for_long_is_told_and_what_can_be_is_cancelled(made: Made) -> None:
    followed, slurm, lines = made(shard("a"), patience=Patience(silence=0.1, report=0.0, ending=0.2))
    lines.at = lambda standing: setattr(slurm, "silent", 10**9)

    with pytest.raises(NoAnswer, match="Slurm has not answered for 0 s: squeue ended with 1: Unable to contact"):
        followed.run()

    assert slurm.cancelled == ["1", "2"]
    assert lines.told("jobs may be left: squeue ended with 1")


def test_a_submission_without_an_answer_is_not_there_twice(made: Made) -> None:
    followed, slurm, _ = made(shard("a"), shard("b"))
    slurm.mute = 1
    writes: list[str] = []
    submit = slurm.submit

    def submitted(script: Path, options: Sequence[str] = ()) -> str:
        writes.extend(job for job in slurm.live if script.stem == "0001-a")
        return submit(script, options)

    slurm.submit = submitted  # type: ignore[method-assign]

    outcome = followed.run()

    assert writes == [], "the first one has ended before the second is there"
    assert slurm.cancelled == ["1"]
    assert names(slurm) == ["0001-a", "0001-a", "0002-b", "merge"]
    assert outcome.without == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_everything(made: Made, number: signal.Signals) -> None:
    skip_if_ignored(number)
    followed, slurm, lines = made(shard("a"), shard("b"))
    lines.at = lambda standing: os.kill(os.getpid(), number)

    outcome = followed.run()

    assert outcome.interrupted
    assert [each.key for each in outcome.left] == ["a", "b"]
    assert slurm.live == []
    assert lines.told("all jobs of this run are cancelled")


def test_signals_that_are_ignored_stay_so(made: Made) -> None:
    """As nohup has it."""
    followed, slurm, lines = made(shard("a"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    lines.at = lambda standing: os.kill(os.getpid(), signal.SIGHUP)
    try:
        outcome = followed.run()
    finally:
        signal.signal(signal.SIGHUP, before)

    assert not outcome.interrupted
    assert slurm.cancelled == []


def test_any_error_cancels_everything(made: Made) -> None:
    followed, slurm, lines = made(shard("a"))

    def broken(standing: Standing) -> None:
        raise OSError("the terminal is gone")

    lines.at = broken

    with pytest.raises(OSError, match="the terminal is gone"):
        followed.run()

    assert slurm.live == []


def test_a_shard_that_fits_nowhere_is_refused_before_anything_is_submitted(made: Made) -> None:
    with pytest.raises(UsageError, match="needs 64 GPUs"):
        made(shard("a"), shard("b", devices=64))
