"""Where in a line of versions the level moved, and by how much.

A level is that of several runs, each a value of its own: restarts of one run share a day and a machine and say nothing
about the next day's. Levels change between versions only. The cheapest cut of the line into levels, in squares of
logarithms about their means, is tested: a step is told where Student's t, with noise from all levels together, would show
so much without one once in a thousand lines. `benchmarks/history/README.md` has what that finds, and what it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_llamaperf.history.lines import Line
from pytest_llamaperf.metrics import Better

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FEWEST = 3  # runs of a level: two may be a bad day
LEAST = 0.01  # relative: what is smaller is no step that anybody looks for
CHANCE = 1e-3  # of a step in a line without one
PENALTY = 4.0  # variances times log(runs), that a further level has to save
OUTLIER = 3.0  # noises from the median of its neighbours, beyond which a value counts as if it were there
QUIETEST = 1e-3  # noise of a run that is assumed at least: no machine repeats itself better
MOST = 2_000  # runs of a line that are looked at, the last


@dataclass(frozen=True)
class Step:
    """The level moved between two versions.

    version, before   the first of the new level and the last of the old
    change, low, high  relative, and its interval, each end at 95 %
    runs, runs_before   how many each level is of
    """

    version: str | None
    before: str | None
    when: str | None
    change: float
    low: float
    high: float
    worse: bool
    runs: int
    runs_before: int


def steps_of(line: Line) -> tuple[Step, ...]:
    """Oldest first; none of a line with too few runs, or with values that have no logarithm."""
    observed = line.observations[-MOST:]
    if len(observed) < 2 * FEWEST or any(each.value <= 0 for each in observed):
        return ()
    import numpy as np

    begins = [0, *np.cumsum([len(level) for level in line.levels])]
    borders = [0, *(begin for end in begins if (begin := end - begins[-1] + len(observed)) > 0)]
    found = _significant(_tamed(np.log([each.value for each in observed])), borders)
    sign = 1 if line.better == Better.LOWER else -1
    return tuple(
        Step(
            version=observed[cut.start].version,
            before=observed[cut.start - 1].version,
            when=observed[cut.start].when,
            change=math.expm1(cut.difference),
            low=math.expm1(cut.difference - cut.reach),
            high=math.expm1(cut.difference + cut.reach),
            worse=sign * cut.difference > 0,
            runs=cut.after,
            runs_before=cut.before,
        )
        for cut in found
    )


@dataclass(frozen=True)
class _Cut:
    """Between two levels, of so many values. `chance` that there is none; logarithms."""

    start: int
    difference: float
    reach: float
    chance: float
    before: int
    after: int


def _significant(values: Numbers, borders: list[int]) -> list[_Cut]:
    """The cheapest cuts at borders, of which the weakest is taken back until all are beyond chance."""
    starts = _cheapest(values, borders)
    while len(starts) > 2:
        cuts = _cuts(values, starts, borders)
        weakest = max(cuts, key=lambda cut: (cut.chance, -abs(cut.difference)))
        small = min(cuts, key=lambda cut: abs(cut.difference))
        if weakest.chance <= CHANCE and abs(small.difference) >= math.log1p(LEAST):
            return cuts
        starts.remove((weakest if weakest.chance > CHANCE else small).start)
    return []


def _cheapest(values: Numbers, borders: list[int]) -> list[int]:
    """The borders that levels start at, and the end: least squares about their means, and a penalty for each level."""
    import numpy as np

    penalty = PENALTY * _noise(values) ** 2 * math.log(len(values))
    sums, squares = (np.concatenate([[0.0], np.cumsum(values**power)]) for power in (1, 2))
    at = np.array(borders)
    best, origin = np.full(len(at), np.inf), np.zeros(len(at), dtype=int)
    best[0] = -penalty
    for place in range(1, len(at)):
        size = at[place] - at[:place]
        with np.errstate(invalid="ignore"):
            inside = squares[at[place]] - squares[at[:place]] - (sums[at[place]] - sums[at[:place]]) ** 2 / size
            cost = np.where(size >= FEWEST, best[:place] + inside + penalty, np.inf)
        origin[place] = int(np.argmin(cost))
        best[place] = cost[origin[place]]
    starts, place = [borders[-1]], len(at) - 1
    while place:
        place = int(origin[place])
        starts.insert(0, borders[place])
    return starts


def _cuts(values: Numbers, starts: list[int], borders: list[int]) -> list[_Cut]:
    import numpy as np
    from scipy.special import stdtr, stdtrit

    levels = [values[a:b] for a, b in pairwise(starts)]
    rest = np.concatenate([level - level.mean() for level in levels])
    freedom = len(values) - len(levels)
    spread = max(math.sqrt(float((rest**2).sum()) / freedom), QUIETEST) * _widened(rest, len(levels))
    found = []
    for number, (one, other) in enumerate(pairwise(levels)):
        first, start, last = starts[number : number + 3]
        tried = sum(first + FEWEST <= border <= last - FEWEST for border in borders)
        error = spread * math.sqrt(1 / len(one) + 1 / len(other))
        difference = float(other.mean() - one.mean())
        chance = 2 * tried * float(stdtr(freedom, -abs(difference) / error))
        found.append(_Cut(start, difference, float(stdtrit(freedom, 0.95)) * error, chance, len(one), len(other)))
    return found


def _widened(rest: Numbers, levels: int) -> float:
    """How much further means are off where a value is like the one before it: a machine's good days come in rows.

    Taking the means off makes neighbours look less alike than they are, by one share in so many values for each level.
    """
    together = float((rest[1:] * rest[:-1]).sum()) / max(float((rest**2).sum()), 1e-30) + levels / len(rest)
    alike = min(max(together, 0.0), 0.8)
    return math.sqrt((1 + alike) / (1 - alike))


def _tamed(values: Numbers) -> Numbers:
    """Outliers moved to where they are none, by the median of five: a level of three runs is left as it is."""
    import numpy as np

    padded = np.concatenate([[np.nan] * 2, values, [np.nan] * 2])
    centers = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    reach = OUTLIER * _noise(values)
    return np.clip(values, centers - reach, centers + reach)


def _noise(values: Numbers) -> float:
    """Of one run, by how neighbours differ: a few steps among them do not count."""
    import numpy as np

    return max(1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2), QUIETEST)
