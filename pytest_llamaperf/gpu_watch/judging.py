"""What samples say against a measurement: GPUs that were slowed down, strangers on them, looks that tell nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llamaperf.gpu_health import Sample
from pytest_llamaperf.wording import amount

LONGEST_GAP = 5.0  # seconds without a look: a slowdown may have come and gone

# What lowers clocks, other than power within its limit and clocks that were set on purpose. The general bit of the
# hardware comes with a special one or alone.
SLOWED = {
    0x040: "slowed down by its hardware, too hot",
    0x080: "slowed down by its power supply",
    0x020: "slowed down by its driver, too hot",
    0x008: "slowed down by its hardware",
}


def slowdowns(samples: Sequence[Sample]) -> list[str]:
    """Each GPU that was slowed down, by what, when, how often, and what it cost; of several causes the most special."""
    found = []
    for gpu, looks in _by_gpu(samples).items():
        for bit, told in SLOWED.items():
            slow = [look for look in looks if look.reasons & bit]
            if slow:
                found.append(f"GPU {gpu} was {told} {_when(slow, looks)}{_at_worst(slow)}")
                break
    return found


def visits(samples: Sequence[Sample], strangers: Mapping[int, str]) -> list[str]:
    """Each stranger on a GPU, when, and how much it held. `strangers` are their names by number."""
    found = []
    for gpu, looks in _by_gpu(samples).items():
        for pid, name in strangers.items():
            there = [look for look in looks if pid in look.processes]
            if there:
                held = [used for look in there if (used := look.processes[pid]) is not None]
                told = f", with up to {amount(max(held), 'B')}" if held else ""
                found.append(f"{name} was on GPU {gpu} {_when(there, looks)}{told}")
    return found


def blindness(samples: Sequence[Sample], ended: float, loaded: int) -> str | None:
    """Why samples tell nothing; None where they do.

    `ended` is when the watch did, in seconds since it began; an engine was loaded on at least `loaded` GPUs.
    """
    by_gpu = _by_gpu(samples)
    if not by_gpu:
        return "nobody looked"
    for gpu, looks in by_gpu.items():
        times = [*(look.at for look in looks), ended]
        gap, since = max((b - a, a) for a, b in zip([0.0, *times], times, strict=False))
        if gap > LONGEST_GAP:
            return f"no look at GPU {gpu} for {gap:.1f} s from second {since:.1f}"
        if not any(look.sm_clock for look in looks):
            return f"GPU {gpu} is said to have a clock of 0 MHz at every look"
    empty = [gpu for gpu, looks in by_gpu.items() if not any(look.used for look in looks)]
    if len(by_gpu) - len(empty) < loaded:
        return (
            f"GPU {empty[0]} is said to hold 0 bytes at every look, and an engine is loaded"
            if empty
            else (f"{len(by_gpu)} GPUs were seen, and the engine is loaded on {loaded}")
        )
    return None


def _by_gpu(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.gpu, []).append(sample)
    return dict(sorted(found.items()))


def _when(some: Sequence[Sample], looks: Sequence[Sample]) -> str:
    seconds = f"from second {some[0].at:.1f} to {some[-1].at:.1f}" if len(some) > 1 else f"at second {some[0].at:.1f}"
    return f"{seconds} of the run, in {len(some)} of {len(looks)} looks"


def _at_worst(slow: Sequence[Sample]) -> str:
    hot = [look.temperature for look in slow if look.temperature is not None]
    degrees = f", at up to {max(hot)} °C" if hot else ""
    return f"{degrees}, with clocks down to {min(look.sm_clock for look in slow):,} MHz"
