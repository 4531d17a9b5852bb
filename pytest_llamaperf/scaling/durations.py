"""How long shards took before: seconds of their tests in earlier runs, where those were whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.runs import Run, read_run
from pytest_llamaperf.wording import counted


@dataclass(frozen=True)
class Known:
    """Of one earlier run: seconds by test. The first test that asks for an engine pays for loading it, so a sum over all
    tests of a shard is worth something, one over a part of them is not."""

    run: str
    seconds: dict[str, float]

    def of(self, tests: Iterable[str]) -> float | None:
        """None where one of the tests is not known."""
        total = 0.0
        for test in tests:
            if test not in self.seconds:
                return None
            total += self.seconds[test]
        return total


def known_durations(paths: Sequence[Path], *, gpu: str, engine: str) -> list[Known]:
    """Of runs on the same hardware under the same engine, the latest first. Raises UsageError for what is no run."""
    runs = [run for run in map(read_run, paths) if (run.header.gpu, run.header.engine) == (gpu, engine)]
    runs.sort(key=lambda run: run.header.started, reverse=True)
    return [Known(run.header.id, _seconds(run)) for run in runs]


def _seconds(run: Run) -> dict[str, float]:
    """Of tests that did their work: one that was skipped before it began, or broke, took another time than it will."""
    return {
        test.nodeid: test.duration
        for test in run.tests
        if test.outcome in ("passed", "failed", "waived") or (test.outcome == "skipped" and test.results)
    }


def expected(known: Sequence[Known], tests: Sequence[str], guess: float) -> tuple[float, str]:
    """Seconds of a shard, and what they are based on: the mean of the runs that know all its tests, else the guess."""
    found = [seconds for each in known if (seconds := each.of(tests)) is not None]
    if not found:
        return guess, "a guess"
    return sum(found) / len(found), counted(len(found), "earlier run")
