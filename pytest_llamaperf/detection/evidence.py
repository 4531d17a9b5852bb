"""What readings say about a loss: its estimate, its error, and how sure it is that something was lost.

Arrays hold a cell in each row and its readings along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llamaperf.detection.noise import Noise
    from pytest_llamaperf.detection.readings import Flags, Numbers
    from pytest_llamaperf.detection.rule import Rule

CUT = 1.5  # noises from the centre: what is further out counts as if it were there
WIDER = 1.05  # variance of the mean of what was cut, against that of a mean
CONTRADICTED = 0.95  # a spread that is larger than expected with this confidence is believed instead


@dataclass(frozen=True, eq=False)
class Loss:
    """Of each cell. estimate: logarithm of the ratio, more is worse; error: its standard error."""

    estimate: Numbers
    error: Numbers
    freedom: Numbers

    def chance_of_noise(self, beyond: Numbers | float = 0.0) -> Numbers:
        """One-sided: how often noise alone shows so much beyond a true loss of `beyond`."""
        from scipy.special import stdtr

        return stdtr(self.freedom, (beyond - self.estimate) / self.error)

    def reach(self, confidence: float) -> Numbers:
        """Half an interval, each end at this confidence. Cells of a family mostly have the same freedom."""
        import numpy as np
        from scipy.special import stdtrit

        freedoms, which = np.unique(self.freedom, return_inverse=True)
        return stdtrit(freedoms, confidence)[which] * self.error


def location(rows: Numbers, noise: Numbers) -> Numbers:
    """Huber's estimate with a known scale: a mean in which no value counts further out than `CUT` noises.

    NaN is no value.
    """
    import numpy as np

    center = np.nanmedian(rows, axis=-1)
    for _ in range(4):
        low, high = (center + side * CUT * noise for side in (-1, 1))
        center = np.nanmean(np.clip(rows, low[:, None], high[:, None]), axis=-1)
    return center


def between(baseline: Numbers, candidate: Numbers, noise: Noise) -> Loss:
    """Of restarts that were not made in turn."""
    import numpy as np

    scale = np.sqrt(noise.variance)
    count = 1 / np.isfinite(baseline).sum(axis=-1) + 1 / np.isfinite(candidate).sum(axis=-1)
    estimate = location(candidate, scale) - location(baseline, scale)
    return Loss(estimate, scale * np.sqrt(WIDER * count), noise.freedom)


def in_pairs(pairs: Numbers, noise: Noise) -> Loss:
    """Of differences candidate less baseline. Their own spread is averaged with the noise known before, as 1 more
    degree of freedom for each pair after the first; where it contradicts that noise, the larger one holds.
    """
    import numpy as np
    from scipy.special import fdtr

    known, number = 2 * noise.variance, pairs.shape[-1]
    scale = np.sqrt(known)
    estimate = location(pairs, scale)
    away = np.clip(pairs - estimate[:, None], -3 * scale[:, None], 3 * scale[:, None])
    own = (away**2).sum(axis=-1) / (number - 1)
    freedom = noise.freedom + number - 1
    variance = (noise.freedom * known + (number - 1) * own) / freedom
    contradicted = fdtr(number - 1, noise.freedom, own / known) > CONTRADICTED
    return Loss(
        estimate,
        np.sqrt(np.where(contradicted, np.maximum(own, variance), variance) * WIDER / number),
        np.where(contradicted, noise.freedom, freedom),
    )


def needed(pairs: Numbers, loss: Loss, allowed: Numbers, look: int, rule: Rule) -> Numbers:
    """How much of the two chances a suspect would need to be called a regression at this look: 1 is all of them.

    Infinite where too few pairs agree, and at a look that proves nothing.
    """
    import numpy as np

    share = rule.spending[look]
    if share == 0:
        return np.full(len(pairs), np.inf)
    most = np.maximum(
        loss.chance_of_noise() / (rule.spurious * share), loss.chance_of_noise(allowed) / (rule.overstrict * share)
    )
    # A mode sets two restarts of one build apart, in the worse direction, in at most a quarter of pairs: however
    # large the mean that they make, seldom do most pairs show half of it.
    limit = np.maximum(allowed, loss.estimate / 2)
    agree = (pairs > limit[:, None]).sum(axis=-1) >= rule.agreeing[look]
    return np.where(agree, most, np.inf)


def proven(shares: Numbers) -> Flags:
    """Holm's procedure over all suspects, each with the share of the chances that it needs."""
    import numpy as np

    order = np.argsort(shares)
    left = len(shares) - np.arange(len(shares))
    passed = np.logical_and.accumulate(shares[order] * left <= 1)
    found = np.zeros(len(shares), dtype=bool)
    found[order] = passed
    return found


def promise(loss: Loss, noise: Noise, pairs: int, allowed: Numbers, open_suspects: int, rule: Rule) -> Numbers:
    """The chance that the last look finds a regression, by what was seen so far: of so many pairs, or 0, of the screen."""
    import numpy as np
    from scipy.special import stdtr, stdtrit

    last, share = rule.looks[-1], rule.spending[-1] / max(open_suspects, 1)
    if pairs >= last:
        return np.zeros(len(allowed))
    error = loss.error * np.sqrt(pairs / last) if pairs else np.sqrt(2 * noise.variance * WIDER / last)
    threshold = np.maximum(
        stdtrit(loss.freedom, 1 - rule.spurious * share) * error,
        allowed + stdtrit(loss.freedom, 1 - rule.overstrict * share) * error,
    )
    # The last estimate holds the pairs seen already, but not the restarts of the screen.
    moves = loss.error * np.sqrt(1 - pairs / last) if pairs else np.hypot(loss.error, error)
    return stdtr(loss.freedom, (loss.estimate - threshold) / moves)
