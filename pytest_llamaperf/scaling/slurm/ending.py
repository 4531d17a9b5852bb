"""What the end of a shard's job means: results, a loss that another node may mend, or one that would only be repeated."""

from __future__ import annotations

import signal

from pytest_llamaperf.scaling.contract import WITH_RESULTS, End, Ending
from pytest_llamaperf.scaling.slurm.fitting import ENDING_SECONDS
from pytest_llamaperf.scaling.slurm.scheduler import Job

# What `timeout` exits with where it told its command to end, and where it then had to kill it.
TIMED_OUT, TIMED_OUT_AND_KILLED = 124, 137

# Of pytest: it refuses its options, as it would anywhere.
WRONG_USE = 4

# Slurm's own "signal": it could not start the batch script, as without its folder for output.
_NOT_STARTED = 53


def ending(job: Job | None, *, done: bool, reported: bool) -> Ending:
    """`job` is None where Slurm has forgotten it; `done` is whether the results of its shard are there, `reported` whether
    anything is: pytest writes what it has when it is told to end.

    Lost is what the cluster lost: its node failed, it was not started, it was pushed aside, or it died without a report.
    Broken is what would end like that again: its time or memory was too small, somebody cancelled it, or pytest refused.
    """
    if job is None and done:
        return Ending(End.DONE)
    if job is None:
        return Ending(End.LOST, "Slurm has forgotten its job, and its results are not whole")
    match job.state:
        case "NODE_FAIL" | "BOOT_FAIL":
            return Ending(End.LOST, f"its node {job.node} failed")
        case "PREEMPTED":
            return Ending(End.LOST, f"another job pushed it aside on {job.node}")
        case "CANCELLED" | "REVOKED":
            return Ending(End.BROKEN, f"its job {job.id} was cancelled")
        case "OUT_OF_MEMORY":
            return Ending(End.BROKEN, f"it used more memory of {job.node} than its job was given")
        case "TIMEOUT" | "DEADLINE":
            return Ending(End.BROKEN, f"it did not end at its time limit, and Slurm ended it on {job.node}")
    if not job.node:
        return Ending(End.BROKEN, f"Slurm gave it no node: {job.reason or job.state}")
    return _by_status(job, done, reported)


def _by_status(job: Job, done: bool, reported: bool) -> Ending:
    status = job.exit_status
    if status is None:
        if job.signal == _NOT_STARTED:
            return Ending(End.LOST, f"{job.node} could not start it")
        return Ending(End.LOST, f"it was ended by {_name(job.signal)} on {job.node}")
    if status == TIMED_OUT:
        return Ending(End.BROKEN, f"it was told to end at its time limit on {job.node}")
    if status == TIMED_OUT_AND_KILLED:
        return Ending(
            End.BROKEN,
            f"it was told to end at its time limit on {job.node}, did not in {ENDING_SECONDS} s, and was killed",
        )
    if status in WITH_RESULTS and done:
        return Ending(End.DONE)
    if reported or status == WRONG_USE:
        return Ending(End.BROKEN, f"pytest ended on {job.node} with status {status}, and its results are not whole")
    hint = ": is its folder on a file system that all nodes share?" if status in WITH_RESULTS else ""
    return Ending(End.LOST, f"it ended on {job.node} with status {status}, and no report of it is seen here{hint}")


def _name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
