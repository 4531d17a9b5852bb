"""How much do restarts of one build differ? Pooled within releases, and shrunk to other cells of the same metric.

Spread is only ever taken within one release: levels of releases differ because builds do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llamaperf.detection.readings import Numbers

EFFICIENCY = 0.9  # of the variance below, against that of restarts without outliers: simulated
FEW = 5  # cells, below which a family does not tell how much its cells differ
TRIALS = 10_000


@dataclass(frozen=True, eq=False)
class Noise:
    """Of each cell: variance of the logarithm of one restart, and the degrees of freedom it is known with."""

    variance: Numbers
    freedom: Numbers

    def of(self, cells: Sequence[int]) -> Noise:
        return Noise(self.variance[list(cells)], self.freedom[list(cells)])


def restart_noise(releases: Sequence[Numbers], families: Sequence[str], outliers: float, floor: float) -> Noise:
    """Of each release the logarithms of its restarts, a cell in each row, filled up with NaN; families are names of metrics.

    Raises nothing: a cell without two restarts of any release has the noise of its family.
    """
    import numpy as np

    variance, freedom = np.full(len(families), np.nan), np.zeros(len(families))
    sizes = np.column_stack([np.isfinite(release).sum(axis=-1) for release in releases])
    kinds, kind_of = np.unique(sizes, axis=0, return_inverse=True)
    for number, kind in enumerate(kinds.tolist()):
        if repeated := [(release, size) for release, size in zip(releases, kind, strict=True) if size > 1]:
            cells = np.flatnonzero(kind_of == number)
            variance[cells], freedom[cells] = _pooled([release[cells, :size] for release, size in repeated], outliers)
    names = np.array(families)
    for family in dict.fromkeys(families):
        members = names == family
        variance[members], freedom[members] = _shrunk(variance[members], freedom[members], floor)
    return Noise(variance, freedom)


def _pooled(groups: Sequence[Numbers], outliers: float) -> tuple[Numbers, float]:
    """Squares about each release's median, the few largest replaced by the next: those may be outliers.

    A share of all restarts is forgiven, not what is far off: of a cell with two modes, both are its noise.
    """
    sizes = tuple(group.shape[-1] for group in groups)
    return _squares(groups, outliers) / _expected(sizes, outliers), EFFICIENCY * sum(size - 1 for size in sizes)


def _squares(groups: Sequence[Numbers], outliers: float) -> Numbers:
    import numpy as np

    away = np.concatenate([np.abs(group - np.median(group, axis=-1, keepdims=True)) for group in groups], axis=-1)
    away.sort(axis=-1)
    number = away.shape[-1]
    if forgiven := int(outliers * number + 0.5):
        away[:, number - forgiven :] = away[:, [number - forgiven - 1]]
    squares: Numbers = (away**2).sum(axis=-1)
    return squares


@lru_cache
def _expected(sizes: tuple[int, ...], outliers: float) -> float:
    """Of standard normal restarts: simulated, always with the same numbers, to half a percent."""
    import numpy as np

    rng = np.random.default_rng(0)
    return float(_squares([rng.standard_normal((TRIALS, size)) for size in sizes], outliers).mean())


def _shrunk(variance: Numbers, freedom: Numbers, floor: float) -> tuple[Numbers, Numbers]:
    """Empirical Bayes for variances (Smyth, Statistical Applications in Genetics 3, 2004), by median and MAD.

    A cell's own variance and the family's are averaged, weighted by degrees of freedom; the family has more of them
    the less its cells differ, 1 to 50.
    """
    import numpy as np
    from scipy.special import digamma, polygamma

    known = freedom > 0
    if not known.any():
        return np.full_like(variance, np.nan), freedom
    half = freedom[known] / 2
    logs = np.log(np.maximum(variance[known], 1e-9)) - digamma(half) + np.log(half)
    center = float(np.median(logs))
    prior = 2.0
    if known.sum() >= FEW:
        excess = (1.4826 * float(np.median(np.abs(logs - center)))) ** 2 - float(np.median(polygamma(1, half)))
        prior = min(max(2 * _inverse_trigamma(excess), 1.0), 50.0) if excess > 0 else 50.0
    family = math.exp(center + float(digamma(prior / 2)) - math.log(prior / 2))
    own = np.where(known, variance, 0.0)
    shrunk = (prior * family + freedom * own) / (prior + freedom)
    return np.maximum(shrunk, floor**2), prior + freedom


def _inverse_trigamma(value: float) -> float:
    """Newton's iteration of Smyth's appendix."""
    from scipy.special import polygamma

    found = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, found))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, found))
        found += step
        if abs(step) < 1e-9 * found:
            break
    return found
