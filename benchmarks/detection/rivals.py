"""Rules: functions of a release that tell which cells got worse. Ours, the researched one, and those in use.

Rules that compare once get 5 restarts of the baseline and 3 of the candidate; ours and the researched one screen on 5
and 2, and pay for all else. Those of other tools are their decision steps, written again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from releases import CANDIDATE, Numbers, Suite
from scipy.special import stdtr, stdtrit

from pytest_llamaperf.detection.confirming import Confirmation
from pytest_llamaperf.detection.deciding import decide
from pytest_llamaperf.detection.noise import Noise, restart_noise
from pytest_llamaperf.detection.orders import Restart
from pytest_llamaperf.detection.readings import Cell, Side, matrix
from pytest_llamaperf.detection.rule import Rule
from pytest_llamaperf.detection.screening import screen
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.verdicts import Outcome

Flags = NDArray[np.bool_]
SCREENED = 2  # restarts of the candidate
LEVEL = 100.0  # of any metric: only ratios count


@dataclass(frozen=True, eq=False)
class Answer:
    """lost: called a regression; unsure: neither that nor fine; restarts: beyond those that were there, all cells."""

    lost: Flags
    unsure: Flags
    restarts: int = 0


Judge = Callable[[Suite], Answer]


def ours(suite: Suite, rule: Rule | None = None, *, oracle: bool = False) -> Answer:
    """The shipped rule, driven as a session drives it. The oracle is told the true noise of every cell."""
    cells = [
        Cell(f"e{engine:04}", f"c{number:04}", metric)
        for number, (engine, metric) in enumerate(zip(suite.engines, suite.metrics, strict=True))
    ]
    history = [_readings(cells, suite.history[:, release]) for release in range(suite.history.shape[1])]
    screening = screen(
        _readings(cells, suite.baseline), _readings(cells, suite.candidate[:, :SCREENED]), history, rule or Rule()
    )
    if oracle:
        noise = Noise(np.maximum(suite.sd, 0.001) ** 2, np.full(len(cells), 1e6))
        screening = type(screening)(
            screening.cells, screening.baseline, screening.candidate, noise, screening.limits, screening.rule, "oracle"
        )
    confirmation = Confirmation(screening)
    engines: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        engines.setdefault(cell.engine, []).append(number)
    drawn: dict[str, list[int]] = {engine: [0, 0, 0] for engine in engines}  # second looks, before, after
    while orders := confirmation.orders:
        made = []
        for order in orders:
            count = drawn[order.engine]
            for side in order.sides:
                if set(order.sides) == {Side.CANDIDATE}:
                    column, place = suite.candidate, count[0] + SCREENED
                    count[0] += 1
                elif side is Side.BASELINE:
                    column, place = suite.before, count[1]
                    count[1] += 1
                else:
                    column, place = suite.after, count[2]
                    count[2] += 1
                readings = {cells[n]: _value(cells[n], float(column[n, place])) for n in engines[order.engine]}
                made.append(Restart(order.engine, side, readings))
        confirmation = confirmation.with_restarts(*made)
    decision = decide(confirmation)
    outcome = {verdict.cell: verdict.outcome for verdict in decision.verdicts}
    lost = np.array([outcome[cell] is Outcome.REGRESSION for cell in cells])
    unsure = np.array([outcome[cell] is Outcome.INCONCLUSIVE for cell in cells])
    return Answer(lost, unsure, decision.restarts)


def oracle(suite: Suite) -> Answer:
    return ours(suite, oracle=True)


# Variance of a mean after dropping the best and the worst fifth of n normal values.
TRIMMED = {2: 0.5, 3: 0.448, 5: 0.227, 6: 0.184, 10: 0.113}


def researched(suite: Suite) -> Answer:
    """Trimmed means, the larger of two spreads, looks at 3, 6 and 10 pairs: what our rule started from."""
    releases = [
        [list(row), list(new[:SCREENED]), *map(list, old)]
        for row, new, old in zip(suite.baseline, suite.candidate, suite.history, strict=True)
    ]
    names = [metric.name for metric in suite.metrics]
    capped = [matrix(cells) for cells in zip(*map(_capped, releases), strict=True)]
    noise = restart_noise(capped, names, 0.0, 0.003)
    variance, freedom = noise.variance, noise.freedom
    tolerance, bound = (np.array([x * (2 if n == "ttft_median" else 1) for n in names]) for x in (0.005, 0.03))
    loss = suite.candidate[:, :SCREENED].mean(axis=1) - _trimmed(suite.baseline)
    error = np.sqrt(variance * (TRIMMED[5] + TRIMMED[2]))
    chance = stdtr(freedom, -loss / error)
    tested = (chance < 0.05) & (np.argsort(np.argsort(chance)) < len(chance) // 4)
    unsure = (loss + stdtrit(freedom, 0.95) * error >= bound) | tested
    lost, best, going, restarts, reached = np.zeros(len(loss), dtype=bool), np.ones(len(loss)), tested.copy(), 0, 0
    for pairs in (3, 6, 10):
        restarts += 2 * (pairs - reached) * int(going.sum())
        reached = pairs
        rows = (suite.after - suite.before)[:, :pairs]
        error = np.sqrt(np.maximum(2 * variance * TRIMMED[pairs], _yuen(rows)))
        chance = stdtr(freedom, (tolerance - _trimmed(rows)) / error)
        best[going] = np.minimum(best, chance)[going]
        lost = _holm(best, tested, 0.02 / 3)
        going &= ~lost
        fine = going & (_trimmed(rows) + stdtrit(freedom, 0.95) * error < bound)
        unsure &= ~fine
        going &= ~fine
    return Answer(lost, unsure & ~lost, restarts)


def fixed(share: float) -> Judge:
    """Mean of the candidate against the mean of the baseline; as pytest-benchmark's `mean:5%` does."""
    return lambda suite: _plainly(_new(suite).mean(axis=1) - suite.baseline.mean(axis=1) > math.log1p(share))


def pytest_benchmark_min(share: float) -> Judge:
    """`--benchmark-compare-fail=min:5%`."""
    return lambda suite: _plainly(_new(suite).min(axis=1) - suite.baseline.min(axis=1) > math.log1p(share))


def tensorrt_llm(share: float) -> Judge:
    """Its post-merge rule: trailing means of three nights, the best 5 % of them the norm, one new value."""

    def judge(suite: Suite) -> Answer:
        means = np.lib.stride_tricks.sliding_window_view(suite.nights, 3, axis=1).mean(axis=-1)
        return _plainly(suite.candidate[:, 0] - np.quantile(means, 0.05, axis=1) > math.log1p(share))

    return judge


def welch(suite: Suite) -> Answer:
    """One-sided p < 0.05 in each cell."""
    return _plainly(_welch_chances(suite) < 0.05)


def welch_bonferroni(suite: Suite) -> Answer:
    """One-sided, 0.01 over all cells."""
    return _plainly(_welch_chances(suite) < 0.01 / len(suite.loss))


def mann_whitney_bh(suite: Suite) -> Answer:
    """Exact one-sided Mann-Whitney, Benjamini-Hochberg at 0.05."""
    beaten = (_new(suite)[:, :, None] > suite.baseline[:, None, :]).sum(axis=(1, 2))
    chances = _exact_mann_whitney(CANDIDATE, suite.baseline.shape[1])[beaten]
    order = np.argsort(chances)
    under = np.flatnonzero(chances[order] <= 0.05 * np.arange(1, len(order) + 1) / len(order))
    lost = np.zeros(len(order), dtype=bool)
    lost[order[: under[-1] + 1 if len(under) else 0]] = True
    return _plainly(lost)


RULES: dict[str, Judge] = {
    "ours": ours,
    "researched": researched,
    "fixed 5 %": fixed(0.05),
    "fixed 10 %": fixed(0.10),
    "TensorRT-LLM 5 %": tensorrt_llm(0.05),
    "pytest-benchmark min:5%": pytest_benchmark_min(0.05),
    "pytest-benchmark min:10%": pytest_benchmark_min(0.10),
    "Welch p < 0.05": welch,
    "Welch, Bonferroni": welch_bonferroni,
    "Mann-Whitney, BH": mann_whitney_bh,
}


def _plainly(lost: Flags) -> Answer:
    return Answer(lost, np.zeros(len(lost), dtype=bool))


def _new(suite: Suite) -> Numbers:
    return suite.candidate[:, :CANDIDATE]


def _readings(cells: list[Cell], rows: Numbers) -> dict[Cell, list[float]]:
    return {cell: [_value(cell, float(y)) for y in row] for cell, row in zip(cells, rows, strict=True)}


def _value(cell: Cell, logarithm: float) -> float:
    return LEVEL * math.exp(logarithm if cell.metric.better is Better.LOWER else -logarithm)


def _capped(groups: list[list[float]]) -> list[list[float]]:
    """Releases whose variance is more than 9 times the median one's are shrunk to that."""
    spreads = [float(np.std(group, ddof=1)) for group in groups]
    most = 3 * math.sqrt(float(np.median(np.square(spreads))))
    return [
        list(np.mean(group) + (np.array(group) - np.mean(group)) * (min(1.0, most / spread) if spread else 1.0))
        for group, spread in zip(groups, spreads, strict=True)
    ]


def _trimmed(rows: Numbers) -> Numbers:
    number = rows.shape[1]
    cut = max(1, number // 5)
    made: Numbers = np.sort(rows, axis=1)[:, cut : number - cut].mean(axis=1)
    return made


def _yuen(rows: Numbers) -> Numbers:
    number = rows.shape[1]
    if number < 5:
        plain: Numbers = rows.var(axis=1, ddof=1) * TRIMMED[number]
        return plain
    cut = max(1, number // 5)
    ordered = np.sort(rows, axis=1)
    ordered[:, :cut], ordered[:, number - cut :] = ordered[:, [cut]], ordered[:, [number - cut - 1]]
    kept = number - 2 * cut
    made: Numbers = ordered.var(axis=1, ddof=1) * (number - 1) / (kept * (kept - 1))
    return made


def _holm(chances: Numbers, tested: Flags, level: float) -> Flags:
    numbers = np.flatnonzero(tested)
    order = numbers[np.argsort(chances[numbers])]
    passed = np.logical_and.accumulate(chances[order] <= level / (len(order) - np.arange(len(order))))
    lost = np.zeros(len(chances), dtype=bool)
    lost[order[passed]] = True
    return lost


def _welch_chances(suite: Suite) -> Numbers:
    new, old = _new(suite), suite.baseline
    a, b = new.var(axis=1, ddof=1) / new.shape[1], old.var(axis=1, ddof=1) / old.shape[1]
    a += 1e-12  # measured repeats may be equal
    freedom = (a + b) ** 2 / (a**2 / (new.shape[1] - 1) + b**2 / (old.shape[1] - 1))
    made: Numbers = stdtr(freedom, (old.mean(axis=1) - new.mean(axis=1)) / np.sqrt(a + b))
    return made


def _exact_mann_whitney(ours_count: int, theirs: int) -> Numbers:
    """Chance of so many wins or more: counted over all orders."""
    from itertools import combinations

    wins = [
        sum(place - k for k, place in enumerate(chosen))
        for chosen in combinations(range(ours_count + theirs), ours_count)
    ]
    counts = np.bincount(wins, minlength=ours_count * theirs + 1)
    made: Numbers = counts[::-1].cumsum()[::-1] / counts.sum()
    return made
