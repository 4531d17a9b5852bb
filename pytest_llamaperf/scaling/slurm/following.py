"""A run's jobs from submission to the last end: followed, tried again where the cluster lost them, and never left behind."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.scaling.contract import ATTEMPTS, WITH_RESULTS, Campaign, End, Outcome
from pytest_llamaperf.scaling.manifest import Shard
from pytest_llamaperf.scaling.slurm.ending import ending
from pytest_llamaperf.scaling.slurm.fitting import Cluster, Seat
from pytest_llamaperf.scaling.slurm.profiles import Profile
from pytest_llamaperf.scaling.slurm.scheduler import Job, NoAnswer, Node, Refused, TooManyJobs, nodes_of
from pytest_llamaperf.scaling.slurm.scripts import folder, job_name, merge_script, shard_script
from pytest_llamaperf.scaling.stopping import stopping
from pytest_llamaperf.scaling.watching import Busy, Standing, Watcher, duration
from pytest_llamaperf.wording import counted

# Why jobs wait when nothing is the matter.
_USUAL = ("", "Priority", "Resources", "Dependency", "BeginTime", "Cleaning")


@dataclass(frozen=True)
class Patience:
    """In seconds. silence: how long Slurm may fail to answer. report: how long one may take to be seen here, as over NFS.
    ending: how long cancelled jobs may take."""

    silence: float = 600.0
    report: float = 60.0
    ending: float = 180.0


class Scheduler(Protocol):
    """What is asked of Slurm: see `scheduler.Slurm`."""

    def submit(self, script: Path, options: Sequence[str] = ()) -> str: ...

    def jobs(self, name: str) -> dict[str, Job]: ...

    def cancel(self, name: str) -> None: ...

    def cancel_job(self, id: str) -> None: ...

    def nodes(self) -> list[Node]: ...


@dataclass
class _Try:
    """A shard in the queue or at work; `avoided` are nodes that are not to have it, `reasons` why earlier tries failed."""

    shard: Shard
    avoided: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    job: str = ""
    seen: Job | None = None
    began: float | None = None
    ended: float | None = None


@dataclass
class Followed:
    """One run on a cluster. `run` may be called once."""

    campaign: Campaign
    slurm: Scheduler
    profile: Profile
    cluster: Cluster
    watcher: Watcher
    patience: Patience = field(default_factory=Patience)
    _queue: deque[_Try] = field(init=False, default_factory=deque)
    _live: dict[str, _Try] = field(init=False, default_factory=dict)
    _without: dict[str, str] = field(init=False, default_factory=dict)
    _told: set[str] = field(init=False, default_factory=lambda: set(_USUAL))
    _closed: frozenset[Node] = field(init=False, default=frozenset())
    _done: int = field(init=False, default=0)
    _merge: str | None = field(init=False, default=None)
    _merge_due: bool = field(init=False, default=True)
    _merged: bool = field(init=False, default=False)
    _silent: float | None = field(init=False, default=None)
    _unsure: bool = field(init=False, default=False)
    _stopped: Sequence[int] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.name = job_name(self.campaign)
        self._seats = {shard.key: self._seat(shard) for shard in self.campaign.manifest.shards}

    def _seat(self, shard: Shard) -> Seat:
        return self.cluster.seat(shard, self.campaign.manifest.about, self.profile)

    def run(self, *, detach: bool = False) -> Outcome:
        """Submit every shard that has no results yet, and a job that merges at the end.

        With `detach` that is all. Else they are followed until the last has ended; Ctrl-C, SIGTERM, SIGHUP and every error
        cancel them. Raises UsageError where jobs of this run are in the queue already or Slurm refuses one, and NoAnswer
        where it does not answer for long.
        """
        with self.campaign.locked(), stopping() as self._stopped:
            self._refuse_what_is_queued()
            remaining = self.campaign.remaining()
            if not remaining:
                return Outcome({}, (), False)
            self._done = len(self.campaign.manifest.shards) - len(remaining)
            self._queue.extend(_Try(shard) for shard in in_turn(remaining))
            finished = False
            try:
                self._submit(detach)
                while not (detach or self._stopped or self._is_over()):
                    self._show()
                    self._wait()
                    self._look()
                    self._submit(detach)
                finished = not self._stopped
            finally:
                if not finished:
                    self._cancel()
            left = (*(each.shard for each in self._live.values()), *(each.shard for each in self._queue))
            return Outcome(self._without, () if detach else left, bool(self._stopped))

    def _refuse_what_is_queued(self) -> None:
        """Jobs of a run that was detached, or whose controller was killed: they write into the same folders."""
        left = [job.id for job in self.slurm.jobs(self.name).values() if not job.ended]
        if left:
            raise UsageError(
                f"{counted(len(left), 'job')} of this run in Slurm's queue already ({', '.join(left[:5])}): wait for them "
                f"(squeue --name={self.name}), or cancel them (scancel --name={self.name})"
            )

    def _is_over(self) -> bool:
        return not self._queue and not self._live and self._merged

    # Submitting.

    def _submit(self, all_at_once: bool) -> None:
        """What is not submitted yet, then the job that merges. Raises Refused where Slurm does not take one."""
        try:
            while self._queue and not self._stopped and not self._unsure:
                self._submit_shard(self._queue[0])
                self._queue.popleft()
            if not self._queue and self._merge_due and not self._stopped and not self._unsure:
                self._submit_merge()
        except TooManyJobs as problem:
            if all_at_once or not self._live:
                raise Refused(f"{problem}: the cluster takes {len(self._live)} jobs of this run at a time") from None
        except NoAnswer as problem:
            if all_at_once:
                raise
            self._unsure = True  # the job may be there all the same
            self._was_silent(problem)

    def _submit_shard(self, each: _Try) -> None:
        campaign, shard = self.campaign, each.shard
        campaign.set_aside(shard)
        campaign.folder(shard).mkdir(parents=True)
        script = folder(campaign) / f"{campaign.folder(shard).name}.sh"
        write_atomically(script, shard_script(campaign, shard, self._seats[shard.key], self.profile))
        options = []
        if waits_for := [job for job, other in self._live.items() if other.shard.key in shard.after]:
            options.append(f"--dependency=afterany:{':'.join(waits_for)}")
        if each.avoided:
            options.append(f"--exclude={','.join([*self.profile.exclude, *each.avoided])}")
        each.job = self.slurm.submit(script, options)
        self._live[each.job] = each
        self._merge_due = True

    def _submit_merge(self) -> None:
        """It waits for all jobs there are; one that waited for fewer is replaced."""
        script = folder(self.campaign) / "merge.sh"
        write_atomically(script, merge_script(self.campaign, self.profile))
        if self._merge is not None:
            self.slurm.cancel_job(self._merge)
        waits_for = ":".join(self._live)
        self._merge = self.slurm.submit(script, [f"--dependency=afterany:{waits_for}"] if waits_for else [])
        self._merge_due = self._merged = False

    # Following.

    def _look(self) -> None:
        """What has become of the jobs. Raises NoAnswer where Slurm has not answered for long."""
        try:
            jobs = self.slurm.jobs(self.name)
            self._look_at_nodes(self.slurm.nodes())
            if self._unsure:
                self._drop_unknown(jobs)
        except NoAnswer as problem:
            self._was_silent(problem)
            return
        self._silent = None
        for id, each in list(self._live.items()):
            each.seen = jobs.get(id)
            if each.seen is None or each.seen.ended:
                self._has_ended(id, each)
            elif each.seen.runs and each.began is None:
                each.began = time.monotonic()
                self.watcher.tell(f"started  {each.shard} on {each.seen.node}")
            else:
                self._look_at_reason(each.shard, each.seen)
        merge = jobs.get(self._merge or "")
        self._merged = self._merge is not None and not self._merge_due and (merge is None or merge.ended)

    def _look_at_reason(self, shard: Shard, job: Job) -> None:
        """Of waiting, each once: some pass only when somebody does something."""
        if not job.runs and job.reason not in self._told:
            self._told.add(job.reason)
            self.watcher.tell(f"waits    {shard}: {job.reason}")

    def _look_at_nodes(self, found: Sequence[Node]) -> None:
        """Nodes that were closed, or opened again, since the last look."""
        names = {node.name for node in self.cluster.nodes}
        self.cluster = Cluster(
            self.cluster.partition, tuple({node.name: node for node in found if node.name in names}.values())
        )
        closed = frozenset(self.cluster.closed)
        known = {node.name for node in self._closed}
        for node in sorted(closed, key=lambda node: node.name):
            if node.name not in known:
                self.watcher.tell(f"node     {described(node)}")
        self._closed = closed

    def _drop_unknown(self, jobs: Mapping[str, Job]) -> None:
        """Jobs that were submitted although the answer got lost. They are submitted again, and then the one that merges."""
        unknown = [job.id for job in jobs.values() if not job.ended and job.id not in self._live]
        for id in unknown:
            self.slurm.cancel_job(id)
        self._unsure = bool(unknown)  # until they have ended: they write into the folders of those that follow

    def _has_ended(self, id: str, each: _Try) -> None:
        done = self.campaign.is_done(each.shard)
        each.ended = each.ended or time.monotonic()
        wrote = each.seen is not None and each.seen.exit_status in WITH_RESULTS
        if not done and wrote and time.monotonic() - each.ended < self.patience.report:
            return
        del self._live[id]
        end = ending(each.seen, done=done, reported=self.campaign.has_report(each.shard))
        if end.end is End.DONE:
            self._done += 1
            took = f" after {duration(each.ended - each.began)}" if each.began is not None else ""
            self.watcher.tell(f"ended    {each.shard}{took}")
            return
        reasons = (*each.reasons, end.reason)
        if end.end is End.LOST and len(reasons) < ATTEMPTS:
            avoided = self._blamed(each)
            if self.cluster.has_another(self._seats[each.shard.key], avoided):
                where = " on another node" if avoided else ""
                self.watcher.tell(f"lost     {each.shard}: {end.reason}; it is tried once more{where}")
                self._queue.append(_Try(each.shard, avoided, reasons))
                return
            reasons = (f"{end.reason}; no other node is open to try it again{self._told_closed()}",)
        self._has_no_results(each.shard, "; tried again, ".join(reasons))

    def _blamed(self, each: _Try) -> tuple[str, ...]:
        """Whoever is pushed aside has nothing against its node."""
        if each.seen is None or each.seen.state == "PREEMPTED":
            return each.avoided
        return (*each.avoided, *nodes_of(each.seen.node))

    def _told_closed(self) -> str:
        return f" ({', '.join(described(node) for node in self.cluster.closed)})" if self.cluster.closed else ""

    def _has_no_results(self, shard: Shard, reason: str) -> None:
        self._without[shard.key] = reason
        self.campaign.note(shard, reason)
        self.watcher.tell(f"no results of {shard}: {reason}")

    def _was_silent(self, problem: NoAnswer) -> None:
        """Raises `problem` after it has lasted for long."""
        now = time.monotonic()
        if self._silent is None:
            self._silent = now
            self.watcher.tell(f"Slurm    does not answer: {problem}")
        elif now - self._silent > self.patience.silence:
            raise NoAnswer(f"Slurm has not answered for {duration(now - self._silent)}: {problem}") from None

    # Showing, waiting, ending.

    def _show(self) -> None:
        running = [each for each in self._live.values() if each.began is not None]
        waiting = [each.shard for each in self._live.values() if each.began is None]
        now = time.monotonic()
        self.watcher.show(
            Standing(
                tuple(Busy(e.shard, e.seen.node if e.seen else "", now - (e.began or now)) for e in running),
                (*waiting, *(each.shard for each in self._queue)),
                self._done,
                len(self._without),
                None,
            )
        )

    def _wait(self) -> None:
        until = time.monotonic() + self.profile.look
        while time.monotonic() < until and not self._stopped:
            time.sleep(min(0.1, self.profile.look))

    def _cancel(self) -> None:
        """All jobs of this run, with any whose id never arrived; until none is left, so that their devices are free.

        A shard is told to end before it is killed, and its engine with it.
        """
        until = time.monotonic() + self.patience.ending
        problem = ""
        while True:
            try:
                self.slurm.cancel(self.name)
                live = [job.id for job in self.slurm.jobs(self.name).values() if not job.ended]
                if not live:
                    self.watcher.tell("all jobs of this run are cancelled")
                    return
                problem = f"{counted(len(live), 'job')} still ending ({', '.join(live[:5])})"
            except NoAnswer as failure:
                problem = str(failure)
            if time.monotonic() > until:
                self.watcher.tell(
                    f"jobs may be left: {problem}; look with squeue --name={self.name}, end them with scancel"
                )
                return
            time.sleep(min(1.0, self.profile.look))


def described(node: Node) -> str:
    """`n2 drained: new cooling`."""
    return f"{node.name} {node.state}{f': {node.why}' if node.why else ''}"


def in_turn(shards: Iterable[Shard]) -> Iterator[Shard]:
    """In the order given, but whatever a shard comes after is before it."""
    waiting = {shard.key: shard for shard in shards}

    def before(key: str) -> Iterator[Shard]:
        shard = waiting.pop(key, None)
        if shard is not None:
            for other in shard.after:
                yield from before(other)
            yield shard

    for key in list(waiting):
        yield from before(key)
