"""What the end of a shard's job means: results, a loss that another node may mend, or one that would only be repeated."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from pytest_llamaperf.scaling.contract import WITH_RESULTS, WRONG_USE
from pytest_llamaperf.scaling.slurm.fitting import ENDING_SECONDS
from pytest_llamaperf.scaling.slurm.scheduler import Job

# What `timeout` exits with where it told its command to end, and where it then had to kill it.
TIMED_OUT, TIMED_OUT_AND_KILLED = 124, 137

# Slurm's own "signal": it could not start the batch script, as without its folder for output.
_NOT_STARTED = 53


@dataclass(frozen=True)
class Loss:
    """Why a job left no results. `again`: the shard is not to blame, or nobody knows; `node` is then to be avoided."""

    words: str
    again: bool = False
    node: str = ""


def loss(job: Job | None, *, reported: bool) -> Loss | None:
    """None where the shard has results. `job` is None where Slurm has forgotten it; `reported`: its run.json is there."""
    if job is None:
        return None if reported else Loss("Slurm knows nothing of its job any more, and there is no report", again=True)
    match job.state:
        case "NODE_FAIL" | "BOOT_FAIL":
            return Loss(f"its node {job.node} failed", again=True, node=job.node)
        case "PREEMPTED":
            return Loss("it had to make room for another job", again=True)
        case "CANCELLED":
            return Loss(f"its job {job.id} was cancelled")
        case "OUT_OF_MEMORY":
            return Loss(f"it used more memory of {job.node} than its job was given")
        case "TIMEOUT" | "DEADLINE":
            return Loss(f"it did not end at its time limit, and Slurm ended it on {job.node}")
    return _by_status(job, reported)


def _by_status(job: Job, reported: bool) -> Loss | None:
    match job.exit_status:
        case status if status in WITH_RESULTS and reported:
            return None
        case status if status in WITH_RESULTS:
            words = f"it ended on {job.node} with status {status}, and its report is not seen here: is the folder shared?"
        case status if status == WRONG_USE:
            return Loss("pytest refused what it was asked (status 4)")
        case status if status == TIMED_OUT:
            return Loss(f"it was told to end at its time limit on {job.node}{', and reported' if reported else ''}")
        case status if status == TIMED_OUT_AND_KILLED:
            return Loss(
                f"it was told to end at its time limit on {job.node}, did not in {ENDING_SECONDS} s, and was killed"
            )
        case None if job.signal == _NOT_STARTED:
            words = f"{job.node} could not start it"
        case None:
            words = f"it was ended by {_name(job.signal)} on {job.node}"
        case status:
            words = f"it ended on {job.node} with status {status}"
    if reported:
        return Loss(f"{words}, and reported")
    return Loss(f"{words}, without a report" if job.exit_status not in WITH_RESULTS else words, again=True, node=job.node)


def _name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
