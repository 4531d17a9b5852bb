"""Percentiles as trtllm-bench takes them: without interpolation, so that of a few values p99 is the largest."""

from __future__ import annotations

from collections.abc import Sequence


def percentiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    ordered = sorted(value * scale for value in values)
    return {
        **{f"p{percent}": ordered[int(len(ordered) * percent / 100)] for percent in (50, 90, 95, 99)},
        "minimum": ordered[0],
        "maximum": ordered[-1],
        "average": sum(ordered) / len(ordered),
    }
