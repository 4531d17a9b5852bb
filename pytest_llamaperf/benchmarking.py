"""Measured rounds as pytest-benchmark knows them: its table, `--benchmark-json`, `--benchmark-compare`, histograms.

Engines are measured in groups, before the test that asks; pytest-benchmark wants to time a function while the test runs.
So the test plays its rounds back, on a clock that moves by what each of them took.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest

from pytest_llamaperf.measurements import Measurement

_FIXTURE = "benchmark"


class Playback:
    """A clock, in seconds, that stands still but for the rounds it is given."""

    __name__ = "time of the engine"

    def __init__(self) -> None:
        self._now = 0.0
        self._rounds: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self._now

    def load(self, rounds: Sequence[float]) -> None:
        self._rounds = iter(rounds)

    def play(self) -> None:
        """The next round."""
        self._now += next(self._rounds)


_CLOCK = pytest.StashKey[Playback]()


def prepare(items: Sequence[pytest.Item], fixture: str) -> None:
    """Give the tests that use `fixture` a clock of their own. Tests with a `benchmark` of their own keep it."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if fixture in names and _FIXTURE not in names and item.config.pluginmanager.hasplugin(_FIXTURE):
            clock = item.stash[_CLOCK] = Playback()
            own = item.get_closest_marker(_FIXTURE)  # its group and the like stay; only the nearest marker is read
            options = {**(own.kwargs if own else {}), "timer": clock}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@contextlib.contextmanager
def seen_as_benchmarks(items: Sequence[pytest.Item]) -> Iterator[None]:
    """While pytest-benchmark chooses tests (--benchmark-only, --benchmark-skip), by who asks for its fixture."""
    lists = {id(item.fixturenames): item.fixturenames for item in items if _CLOCK in item.stash}  # type: ignore[attr-defined]
    for names in lists.values():
        names.append(_FIXTURE)
    try:
        yield
    finally:
        for names in lists.values():
            names.remove(_FIXTURE)


def play_back(request: pytest.FixtureRequest, measurement: Measurement) -> None:
    """The rounds of a test's measurement, the first it asked for, with every metric beside them."""
    clock = request.node.stash.get(_CLOCK, None)
    in_call = os.environ.get("PYTEST_CURRENT_TEST", "").endswith("(call)")  # a fixture may measure as well
    if clock is None or not measurement.elapsed or not in_call:
        return
    del request.node.stash[_CLOCK]
    benchmark = request.getfixturevalue(_FIXTURE)
    benchmark.extra_info["case"] = measurement.case.id
    benchmark.extra_info |= {str(metric): measurement.of(metric).value for metric in measurement.samples}
    clock.load(measurement.elapsed)
    benchmark.pedantic(clock.play, rounds=len(measurement.elapsed))
