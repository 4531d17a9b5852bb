"""Simulated releases: many cells, restarts with the noise of LLM serving, and losses that are known.

A reading is level + change + session + drift + restart noise + outlier, all as logarithms, more is worse. Families differ
in noise as public repeated measurements do (README.md); the `mixed` ones are so that the researched rule finds as much
as it did in its own study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, REQUEST_LATENCY_MEDIAN, TPOT_MEDIAN, TTFT_MEDIAN, Metric

Numbers = NDArray[np.float64]

# Median over cells of the noise of one restart, and the sd of its logarithm.
FAMILIES: tuple[tuple[Metric, float, float], ...] = (
    (OUTPUT_THROUGHPUT, 0.006, 0.7),
    (TPOT_MEDIAN, 0.005, 0.7),
    (REQUEST_LATENCY_MEDIAN, 0.007, 0.7),
    (TTFT_MEDIAN, 0.022, 0.6),
)
QUIETEST, NOISIEST = 0.0015, 0.06
LOSSES = (0.01, 0.02, 0.03, 0.05, 0.10)
LOSING = 4  # cells at each loss
BASELINE, CANDIDATE, MORE, PAIRS, NIGHTS = 5, 3, 2, 24, 30  # restarts that exist before anyone asks for them


@dataclass(frozen=True)
class Scenario:
    """What disturbs readings.

    outliers  share of restarts that are off by 3 % and more, four in five of them slower
    session   sd of what all cached restarts of a cell have in common, and those of its candidate
    drift     sd of a step of the random walk from restart to restart
    modes     share of cells with a second mode, 5 % slower, in 3 of 10 restarts
    times     all noise multiplied
    tails     Student's t with 3 degrees of freedom, of the same sd
    metrics   of an engine: they share 70 % of their variance, and lose together
    earlier   releases of 3 restarts before
    measured  draws noise from repeated measurements: (rng, cells) -> rows of residuals to resample
    """

    name: str
    outliers: float = 0.0
    session: float = 0.0
    drift: float = 0.0
    modes: float = 0.0
    times: float = 1.0
    tails: bool = False
    metrics: int = 1
    earlier: int = 6
    cells: int = 200
    measured: Callable[[np.random.Generator, int], list[Numbers]] | None = None


MIXED = Scenario("mixed")
SCENARIOS = (
    MIXED,
    Scenario("outliers", outliers=0.04),
    Scenario("stale baseline", session=0.007),
    Scenario("drift", drift=0.0015),
    Scenario("all of these", outliers=0.04, session=0.007, drift=0.0015),
    Scenario("heavy tails", tails=True),
    Scenario("two modes", modes=0.2),
    Scenario("noise x3", times=3.0),
    Scenario("no history", outliers=0.04, earlier=0),
    Scenario("4 metrics an engine", outliers=0.04, metrics=4),
)


@dataclass(frozen=True, eq=False)
class Suite:
    """One release against its baseline. Rows are cells; all restarts are drawn, and paid only when a rule uses them.

    candidate  3 restarts, then 2 more; our rule screens on the first 2
    before, after  of pairs in turn
    nights     one reading of each of the last nights
    loss       true, as logarithm; sd: true noise of a restart, NaN where it was measured
    """

    metrics: tuple[Metric, ...]
    engines: tuple[int, ...]
    history: Numbers
    baseline: Numbers
    candidate: Numbers
    before: Numbers
    after: Numbers
    nights: Numbers
    loss: Numbers
    sd: Numbers


def simulated(scenario: Scenario, seed: int, *, losing: bool) -> Suite:
    rng, cells = np.random.default_rng(seed), scenario.cells
    families = [FAMILIES[number % len(FAMILIES)] for number in range(cells)]
    middle, spread = (np.array([family[place] for family in families], dtype=float) for place in (1, 2))
    sd = np.clip(middle * np.exp(spread * rng.standard_normal(cells)), QUIETEST, NOISIEST) * scenario.times
    pools = None if scenario.measured is None else scenario.measured(rng, cells)
    two_modes = rng.random(cells) < scenario.modes

    def noise(*shape: int) -> Numbers:
        if pools is not None:
            drawn: Numbers = np.array([rng.choice(pool, size=shape) for pool in pools])
            return drawn
        made: Numbers = _standard(rng, scenario, shape) * sd.reshape(-1, *[1] * len(shape))
        made += 0.05 * two_modes.reshape(-1, *[1] * len(shape)) * (rng.random(made.shape) < 0.3)
        off = np.where(rng.random(made.shape) < 0.8, 1, -1) * (0.03 + rng.exponential(0.1, made.shape))
        return made + off * (rng.random(made.shape) < scenario.outliers)

    def session(*shape: int) -> Numbers:
        made = noise(*shape) + np.cumsum(scenario.drift * rng.standard_normal((cells, *shape)), axis=-1)
        return made + scenario.session * rng.standard_normal((cells, *[1] * len(shape)))

    loss = np.zeros(cells)
    if losing:
        groups = rng.permutation(cells // scenario.metrics)
        each = LOSING // scenario.metrics
        for number, group in enumerate(groups[: each * len(LOSSES)]):
            loss[group * scenario.metrics : (group + 1) * scenario.metrics] = LOSSES[number // each]
    # In pairs the two builds take turns on one machine: a session effect is common to both, drift nearly so.
    before, after = noise(PAIRS), noise(PAIRS)
    walk = np.cumsum(scenario.drift * rng.standard_normal((cells, 2 * PAIRS)), axis=-1)
    place = np.arange(2 * PAIRS).reshape(PAIRS, 2)
    place[1::2] = place[1::2, ::-1]
    return Suite(
        metrics=tuple(family[0] for family in families),
        engines=tuple(number // scenario.metrics for number in range(cells)),
        history=session(scenario.earlier, 3),
        baseline=session(BASELINE),
        candidate=session(CANDIDATE + MORE) + loss[:, None],
        before=before + walk[:, place[:, 0]],
        after=after + walk[:, place[:, 1]] + loss[:, None],
        nights=noise(NIGHTS),
        loss=loss,
        sd=sd if pools is None else np.full(cells, np.nan),
    )


def undisturbed(scenario: Scenario) -> Scenario:
    """The same cells without outliers: what an oracle that sees them has to work with."""
    return replace(scenario, outliers=0.0)


def _standard(rng: np.random.Generator, scenario: Scenario, shape: tuple[int, ...]) -> Numbers:
    cells, metrics = scenario.cells, scenario.metrics
    if scenario.tails:
        wide: Numbers = rng.standard_t(3, (cells, *shape)) / np.sqrt(3)
        return wide
    own: Numbers = rng.standard_normal((cells, *shape))
    if metrics == 1:
        return own
    common = np.repeat(rng.standard_normal((cells // metrics, *shape)), metrics, axis=0)
    made: Numbers = np.sqrt(0.7) * common + np.sqrt(0.3) * own
    return made
