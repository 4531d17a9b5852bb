"""Slurm's commands, and what they answer as values. Written to Slurm 22.05, with options that have been there for years."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.errors import LlamaperfError, UsageError

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")

# Seconds a command of Slurm may take. They wait by themselves for a controller that is busy, 10 seconds by default.
_ANSWER = 60.0

# Minutes of a partition without a limit.
UNLIMITED = float("inf")

# States in which a job is still to run, runs, or is being cleared away; in all others it has ended.
_LIVE = (
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
    "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
)  # fmt: skip
# States of nodes that get no job, at least for now.
_CLOSED = ("down", "drain", "fail", "future", "inval", "maint", "unk", "no_respond", "power", "reboot", "perfctrs")
# ... of which these are still, or will be, up for jobs.
_OPEN_ANYWAY = ("powering_up", "power_saving", "powered_down")

# What sbatch says where the controller is busy, restarted or not reached; and where more jobs than allowed were submitted.
_MOMENTARY = re.compile(
    r"did not answer|Unable to contact slurm controller|timed out|refused|Zero Bytes|temporarily|Unexpected message",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(r"MaxSubmitJob|MaxJobs|job submit limit", re.IGNORECASE)


class NoAnswer(LlamaperfError):
    """Slurm did not answer, or not to this."""


class Refused(UsageError):
    """Slurm answered no, and would again."""


class TooManyJobs(Refused):
    """A limit on how many jobs may be submitted: with fewer in the queue it would be taken."""


@dataclass(frozen=True)
class Job:
    """One line of squeue. `node` is where it runs or ran, a list in Slurm's short form for several, empty before that.

    `status` is as of waitpid: what it exited with by 256, or the signal that ended it. `reason` says why it waits or failed.
    """

    id: str
    state: str
    status: int = 0
    node: str = ""
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")

    @property
    def ended(self) -> bool:
        return self.state not in _LIVE

    @property
    def exit_status(self) -> int | None:
        """None where a signal ended it."""
        return None if self.status & 0x7F else self.status >> 8

    @property
    def signal(self) -> int | None:
        return self.status & 0x7F or None


@dataclass(frozen=True)
class Node:
    """A node in a partition. `minutes` is the partition's time limit; `why` is what somebody wrote who closed the node."""

    name: str
    partition: str
    default: bool
    state: str
    gpus: int
    minutes: float
    why: str

    @property
    def open(self) -> bool:
        """Whether it gets jobs, now or when the ones on it have ended."""
        state = self.state.lower().rstrip("*~#%$@^!-+")
        if "*" in self.state:  # does not answer
            return False
        return any(state.startswith(each) for each in _OPEN_ANYWAY) or not any(each in state for each in _CLOSED)


class Slurm:
    """The scheduler of the cluster this machine belongs to. Every method raises NoAnswer where Slurm does not do it."""

    def submit(self, script: Path, options: Sequence[str] = ()) -> str:
        """The id of the new job. Raises TooManyJobs where it is one too many for now, Refused where it is never taken.

        After any other NoAnswer the job may have been taken all the same.
        """
        try:
            answer = _ask("sbatch", "--parsable", *options, str(script))
        except NoAnswer as problem:
            if _TOO_MANY.search(str(problem)):
                raise TooManyJobs(str(problem)) from None
            if _MOMENTARY.search(str(problem)):
                raise
            raise Refused(str(problem)) from None
        id = answer.strip().partition(";")[0]  # followed by the cluster's name where there are several
        if not id.isdecimal():
            raise NoAnswer(f"sbatch --parsable {script} answered {answer.strip()[:200]!r} and no id of a job")
        return id

    def jobs(self, name: str) -> dict[str, Job]:
        """Own jobs of that name by id, also those that ended in the last minutes (MinJobAge in slurm.conf, 5 by default)."""
        columns = "JobID:|,State:|,exit_code:|,NodeList:|,Reason:|"
        answer = _ask("squeue", "--noheader", "--states=all", *_own(name), f"--Format={columns}")
        return {job.id: job for job in map(_job, answer.splitlines())}

    def cancel(self, name: str) -> None:
        """All own jobs of that name, with those whose id nobody learned. None of them left is no problem."""
        _ask("scancel", *_own(name))

    def cancel_job(self, id: str) -> None:
        _ask("scancel", id)

    def nodes(self) -> list[Node]:
        """Of all partitions this user may see; a node in two of them is there twice."""
        return [
            _node(line) for line in _ask("sinfo", "--noheader", "--Node", "--format=%R|%P|%N|%T|%G|%l|%E").splitlines()
        ]


def check_commands() -> None:
    """Raises UsageError where this machine has no Slurm, naming what is missing."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise UsageError(
            f"--on slurm: {', '.join(missing)} not on the PATH; run it on a login node of the cluster, or install Slurm's "
            "commands here (slurm-client in Debian and Ubuntu, slurm in Fedora and SUSE) with the cluster's slurm.conf and "
            "munge key"
        )


def gpus_of(gres: str) -> int:
    """GPUs in a list of generic resources: `gpu:h200:8(S:0-1),nvme:2` has 8."""
    entries = re.sub(r"\([^)]*\)", "", gres).split(",")
    counts = [entry.split(":")[-1] for entry in entries if entry.partition(":")[0] == "gpu"]
    return sum(int(count) for count in counts if count.isdecimal())


def nodes_of(names: str) -> list[str]:
    """The nodes in Slurm's short form: `n[01-03,7],m2` are n01, n02, n03, n7 and m2."""
    found: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)", names):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] if last else [first]
            found += [f"{prefix}{number}{suffix}" for number in numbers]
    return found


def minutes_of(limit: str) -> float:
    """A time limit as Slurm writes it: `30:00`, `4:00:00`, `2-12:00:00`, `infinite`."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return UNLIMITED
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def _own(name: str) -> tuple[str, str]:
    """By user as well: whoever runs Slurm could cancel the jobs of others."""
    return f"--user={os.getuid()}", f"--name={name}"


def _job(line: str) -> Job:
    id, state, status, node, reason = (part.strip() for part in line.rstrip("|").split("|", 4))
    return Job(id, state, int(status), "" if node == "(null)" else node, "" if reason == "None" else reason)


def _node(line: str) -> Node:
    partition, marked, name, state, gres, limit, why = (part.strip() for part in line.split("|", 6))
    return Node(
        name, partition, marked.endswith("*"), state, gpus_of(gres), minutes_of(limit), "" if why == "none" else why
    )


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER,
            env=_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for us: what was begun is finished, and then cancelled
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {_ANSWER:g} s") from None
    except OSError as problem:
        raise NoAnswer(f"{command[0]} cannot be started: {problem.strerror}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise NoAnswer(f"{command[0]} ended with {done.returncode}: {said[-1000:] or 'without a word'}")
    return done.stdout


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a job of Slurm was given, if this runs within one: a new job would take it for wishes of its own."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in kept}
