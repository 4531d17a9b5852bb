"""Steps: seldom seen where there are none, found where they are, at their version, within their interval, on one line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.history.alerts import alert_of
from pytest_llamaperf.history.lines import Line
from pytest_llamaperf.history.steps import FEWEST, steps_of
from pytest_llamaperf.observations import Observation


def line(values: list[float], each: int = 1, better: str = "higher", source: str = "measured") -> Line:
    """A line with so many runs of each version, 1.0, 1.1 ..."""
    observations = tuple(
        Observation("c", "m", "s", better, source, value, f"run-{n}", "h", version=f"1.{n // each}", when=f"{n:04}")
        for n, value in enumerate(values)
    )
    return Line("c", "m", source, "h", "s", better, "", observations)


def noisy(seed: int, runs: int, *changes: tuple[int, float]) -> list[float]:
    """Runs of 1 % noise; from each place on, a relative change."""
    logs = 0.01 * np.random.default_rng(seed).standard_normal(runs)
    for place, change in changes:
        logs[place:] += np.log1p(change)
    return [float(value) for value in 100 * np.exp(logs)]


def test_noise_alone_is_hardly_ever_a_step() -> None:
    assert sum(bool(steps_of(line(noisy(seed, 40)))) for seed in range(500)) <= 3
    assert sum(bool(steps_of(line(noisy(seed, 60), each=5))) for seed in range(300)) <= 2


def test_a_step_is_found_at_its_version_with_an_interval_that_holds_it() -> None:
    found = [steps_of(line(noisy(seed, 40, (30, -0.05)))) for seed in range(200)]

    assert sum(len(steps) == 1 for steps in found) >= 196
    steps = [each[0] for each in found if each]
    assert sum(step.version == "1.30" and step.before == "1.29" for step in steps) >= 0.95 * len(steps)
    # Each end is at 95 %, so that nine of ten intervals hold the truth.
    assert 0.82 <= sum(step.low <= -0.05 <= step.high for step in steps) / len(steps) <= 0.97
    assert all(step.worse and step.runs + step.runs_before == 40 for step in steps)


def test_what_went_and_came_back_is_two_steps() -> None:
    found = steps_of(line(noisy(7, 40, (15, -0.08), (25, 1 / 0.92 - 1))))

    assert [(step.version, step.worse) for step in found] == [("1.15", True), ("1.25", False)]


def test_a_level_moves_between_versions_only() -> None:
    """Six runs of each version; the machine got slower within the second, where no border is."""
    (found,) = steps_of(line(noisy(3, 36, (9, -0.05)), each=6))

    assert (found.before, found.version, found.runs_before) in [("1.0", "1.1", 6), ("1.1", "1.2", 12)]


def test_what_nobody_looks_for_is_no_step() -> None:
    assert steps_of(line([100.0] * 20 + [99.5] * 20)) == ()
    assert len(steps_of(line([100.0] * 20 + [98.5] * 20))) == 1


def test_a_level_of_too_few_runs_is_none() -> None:
    assert steps_of(line(noisy(1, 20, (20 - FEWEST + 1, -0.3)))) == ()
    assert len(steps_of(line(noisy(1, 20, (20 - FEWEST, -0.3))))) == 1
    assert steps_of(line([100.0, 50.0])) == ()  # two single values: a change, and nobody knows what it is worth


def test_one_bad_night_is_no_step() -> None:
    values = noisy(2, 40)
    assert steps_of(line([*values[:20], 60.0, *values[21:]])) == ()


def test_less_is_worse_or_better_by_the_metric() -> None:
    values = noisy(4, 30, (20, -0.1))

    assert steps_of(line(values))[0].worse
    assert not steps_of(line(values, better="lower"))[0].worse


def test_values_without_logarithm_have_no_steps() -> None:
    assert steps_of(line([0.0] * 10 + [1.0] * 10)) == ()
    assert alert_of(line([0.0] * 30)) is None


@given(st.lists(st.floats(1e-6, 1e9), min_size=0, max_size=30), st.integers(1, 4))
def test_any_line_has_steps_that_are_of_it(values: list[float], each: int) -> None:
    given_line = line(values, each)
    for step in steps_of(given_line):
        assert step.version in {one.version for one in given_line.observations}
        assert step.low <= step.change <= step.high
        assert min(step.runs, step.runs_before) >= FEWEST


def test_the_same_values_twice_as_large_have_the_same_steps() -> None:
    values = noisy(5, 30, (12, 0.07))
    one, other = steps_of(line(values)), steps_of(line([2 * value for value in values]))

    assert [dataclasses.astuple(step) for step in one] == [pytest.approx(dataclasses.astuple(step)) for step in other]


def test_the_alert_is_about_what_was_measured_alone() -> None:
    values = noisy(1, 37) + [90.0] * 3
    found = alert_of(line(values))

    assert found is not None
    assert found.loss == pytest.approx(0.1, abs=0.02)
    assert alert_of(line(values, source="predicted")) is None
    assert alert_of(line(values[-22:])) is None
