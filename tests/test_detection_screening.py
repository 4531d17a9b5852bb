"""Readings, noise and the screen: what is refused, what noise is made of, and who becomes a suspect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.detection.evidence import Loss, location, needed, proven
from pytest_llamaperf.detection.noise import restart_noise
from pytest_llamaperf.detection.readings import Cell, Readings, logarithm_of, logarithms, loss_of, matrix
from pytest_llamaperf.detection.rule import Allowance, Rule
from pytest_llamaperf.detection.screening import screen
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TTFT_MEDIAN, Metric
from pytest_llamaperf.verdicts import Outcome

METRICS = [OUTPUT_THROUGHPUT, TTFT_MEDIAN]


def cells(count: int, metric: Metric = OUTPUT_THROUGHPUT) -> list[Cell]:
    return [Cell(f"engine-{number:02}", f"case-{number:02}", metric) for number in range(count)]


def drawn(names: list[Cell], restarts: int, seed: int, noise: float = 0.005, loss: float = 0.0) -> Readings:
    """Throughputs about 100; `loss` is a share of all of them."""
    rng = np.random.default_rng(seed)
    return {cell: (100 * (1 - loss) * np.exp(noise * rng.standard_normal(restarts))).tolist() for cell in names}


@given(st.floats(0.001, 0.5), st.sampled_from(METRICS))
def test_a_loss_and_its_logarithm_are_the_same(loss: float, metric: Metric) -> None:
    cell = Cell("e", "c", metric)
    before, after = 100.0, 100.0 * (1 - loss if metric is OUTPUT_THROUGHPUT else 1 + loss)

    worse = logarithms(cell, [after])[0] - logarithms(cell, [before])[0]

    assert worse == pytest.approx(logarithm_of(cell, loss))
    assert loss_of(cell, worse) == pytest.approx(loss)


def test_too_few_restarts_are_refused_and_it_says_how_many_are_needed() -> None:
    names = cells(2)

    with pytest.raises(UsageError, match=r"2 cells of the candidate .*there are 1, 2 are needed"):
        screen(drawn(names, 5, 1), drawn(names, 1, 2))
    with pytest.raises(UsageError, match=r"2 cells of the baseline .*there are 2, 3 are needed"):
        screen(drawn(names, 2, 1), drawn(names, 2, 2))
    with pytest.raises(UsageError, match="no readings"):
        screen({}, {})


@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_metric_missing_on_one_side_is_refused(side: str) -> None:
    names = cells(3)
    both = {"baseline": dict(drawn(names, 5, 1)), "candidate": dict(drawn(names, 2, 2))}
    del both[side][names[1]]
    other = "candidate" if side == "baseline" else "baseline"

    with pytest.raises(UsageError, match=rf"1 cell measured for the {other} only \(case-01 output_throughput\)"):
        screen(both["baseline"], both["candidate"])


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_readings_are_errors_of_the_engine(value: float) -> None:
    names = cells(2)
    candidate = {**drawn(names, 2, 2), names[0]: [100.0, value]}

    with pytest.raises(EngineError, match=r"case-00 output_throughput: the candidate gave .* above 0"):
        screen(drawn(names, 5, 1), candidate)


def test_a_rule_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="must grow"):
        Allowance(0.02, 0.01, 0.03)
    with pytest.raises(UsageError, match="one entry for each look"):
        Rule(looks=(3, 6))
    with pytest.raises(UsageError, match="numbers of pairs that grow"):
        Rule(looks=(3, 3, 10, 16, 24))
    with pytest.raises(UsageError, match="share of the chance"):
        Rule(spending=(0.3, 0.3, 0.3, 0.3, 0.3))
    with pytest.raises(UsageError, match="above 0 at the last"):
        Rule(spending=(0.1, 0.2, 0.3, 0.4, 0.0))
    with pytest.raises(UsageError, match="spurious"):
        Rule(spurious=0.0)


def simulated_noise(sd: float, outliers: float, modes: float, seed: int = 3) -> float:
    """Median over cells of the noise that is found, of 200 cells with 6 releases of 3 restarts, 5 and 2."""
    rng = np.random.default_rng(seed)

    def release(restarts: int) -> list[float]:
        values = sd * rng.standard_normal(restarts) + 0.2 * (rng.random(restarts) < outliers)
        return [float(value) for value in values + 0.05 * (rng.random(restarts) < modes)]

    cells = [[release(size) for size in (5, 2, 3, 3, 3, 3, 3, 3)] for _ in range(200)]
    releases = [matrix(restarts) for restarts in zip(*cells, strict=True)]
    return float(np.median(np.sqrt(restart_noise(releases, ["m"] * 200, 0.12, 0.0).variance)))


@pytest.mark.parametrize("sd", [0.005, 0.02])
def test_noise_is_found_and_outliers_are_forgiven(sd: float) -> None:
    assert simulated_noise(sd, 0.0, 0.0) == pytest.approx(sd, rel=0.05)
    assert sd * 0.95 < simulated_noise(sd, 0.04, 0.0) < sd * 1.25  # unforgiven it would be 0.04


def test_two_modes_are_noise() -> None:
    # 0.05 in 3 of 10 restarts: sd 0.023
    assert simulated_noise(0.005, 0.0, 0.3) == pytest.approx(0.023, rel=0.25)  # not 0.005


def test_levels_of_releases_are_no_noise() -> None:
    levels = [[0.0, 0.01, 0.02], [5.0, 5.01, 5.02], [-3.0, -2.99, -2.98]]

    noise = restart_noise([matrix([level] * 8) for level in levels], ["m"] * 8, 0.0, 0.0)

    assert np.sqrt(noise.variance) == pytest.approx(0.01, rel=0.1)


def test_a_cell_without_repeats_has_the_noise_of_its_family() -> None:
    known = [[0.0, 0.01, 0.02]] * 8
    releases = [matrix([*known, [0.0]]), *[matrix([*known, []])] * 3]

    noise = restart_noise(releases, ["m"] * 9, 0.0, 0.0)

    assert noise.variance[8] == pytest.approx(noise.variance[0], rel=0.2)
    assert noise.freedom[8] < noise.freedom[0]


def test_an_outlier_moves_a_location_by_little() -> None:
    rows = np.array([[0.0, 0.01, -0.01, 5.0, np.nan], [0.0, 0.01, -0.01, 0.0, 0.0]])

    # cut at 1.5 noises, the outlier moves the mean of four by half a noise at the most
    assert location(rows, np.array([0.01, 0.01])) == pytest.approx([0.005, 0.0], abs=0.001)


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=20))
def test_holm_proves_what_needs_least_first(shares: list[float]) -> None:
    found = proven(np.array(shares))

    assert found.sum() == 0 or max(np.array(shares)[found]) <= min(np.array(shares)[~found], default=2.0)
    assert all(found[np.array(shares) * len(shares) <= 1])  # whatever Bonferroni proves
    assert not any(found[np.array(shares) > 1])


def share(pairs: list[float], look: int) -> float:
    """Of the chances, that these pairs need; their noise is far smaller than what they show."""
    sure = Loss(np.array([float(np.mean(pairs))]), np.array([0.001]), np.array([40.0]))
    return float(needed(np.array([pairs]), sure, np.array([0.005]), look, Rule())[0])


def test_pairs_that_disagree_prove_nothing() -> None:
    lost, second_mode = [0.05, 0.04, 0.06, 0.05, 0.03, 0.05], [0.05, 0.05, 0.0, 0.05, 0.05, 0.05]

    assert share(lost, 1) < 1e-6
    assert share(second_mode, 1) == math.inf
    assert share(lost + [0.05] * 2 + [0.0] * 2, 2) < 1e-6
    assert share(lost + [0.05] + [0.0] * 3, 2) == math.inf


def test_three_pairs_prove_nothing_even_if_they_agree() -> None:
    assert share([0.15, 0.16, 0.15], 0) == math.inf


def test_the_screen_suspects_what_lost_and_passes_the_rest() -> None:
    names = cells(40)
    candidate = {**drawn(names, 2, 2), **drawn(names[:2], 2, 3, loss=0.04)}

    got = screen(drawn(names, 5, 1), candidate, [drawn(names, 3, seed) for seed in (4, 5, 6)])

    assert set(names[:2]) <= set(got.suspects)
    assert len(got.suspects) <= 6
    assert set(got.having(Outcome.PASS)) == set(names) - set(got.suspects)


def test_what_noise_hides_is_inconclusive() -> None:
    names = cells(40)

    got = screen(drawn(names, 5, 1, noise=0.06), drawn(names, 2, 2, noise=0.06))

    assert len(got.having(Outcome.INCONCLUSIVE)) > 20
    assert not got.having(Outcome.REGRESSION)


@given(st.floats(0.01, 1e6))
def test_units_do_not_matter(scale: float) -> None:
    names = cells(12)
    baseline, candidate = drawn(names, 5, 1), drawn(names, 2, 2, loss=0.02)

    plain = screen(baseline, candidate)
    times = [{cell: [scale * v for v in values] for cell, values in r.items()} for r in (baseline, candidate)]
    scaled = screen(times[0], times[1])

    assert scaled.outcomes == plain.outcomes
    assert scaled.loss.estimate == pytest.approx(plain.loss.estimate, abs=1e-9)


def test_each_cell_has_the_limits_of_its_own_metric() -> None:
    cells = [Cell("e", "c", metric) for metric in (OUTPUT_THROUGHPUT, TTFT_MEDIAN)]
    readings = {cell: [1.0, 1.001, 0.999] for cell in cells}

    limits = screen(readings, readings).limits

    assert limits.allowed == pytest.approx([0.005, 0.01], rel=0.02)
