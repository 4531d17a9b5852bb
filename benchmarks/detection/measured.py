"""Noise of repeated measurements: a table with one value of one restart in each row, as CSV, gzipped or not.

Columns: source, cell, metric, better, version, value. Rows that agree in all but the value are repeats.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from releases import FAMILIES, Numbers, Scenario

LEAST = 4  # repeats
# Which measured metrics stand for a family: name of ours -> names in the table.
NAMES = {
    "output_throughput": ("tput_per_gpu", "output_throughput", "token_throughput"),
    "tpot_median": ("median_tpot", "median_tpot_ms"),
    "request_latency_median": ("median_e2el", "median_request_latency"),
    "ttft_median": ("median_ttft", "median_ttft_ms"),
}


def scenario(path: Path) -> Scenario:
    """Cells resample the residuals of one group of repeats each, of a metric of their family."""
    groups = residuals(path)
    pools = [[g for name in NAMES[metric.name] for g in groups.get(name, [])] for metric, *_ in FAMILIES]
    everything = [group for pool in pools for group in pool]
    if not everything:
        raise SystemExit(f"{path}: no metric was repeated {LEAST} times; known are {sorted(groups)}")
    filled = [pool or everything for pool in pools]

    def draw(rng: np.random.Generator, cells: int) -> list[Numbers]:
        chosen = [filled[number % len(filled)] for number in range(cells)]
        return [pool[rng.integers(len(pool))] for pool in chosen]

    name = path.name.split(".")[0].removeprefix("real_")
    return Scenario(f"measured: {name}", measured=draw)


def residuals(path: Path) -> dict[str, list[Numbers]]:
    """Metric -> of each group of repeats, logarithms less their median, more is worse."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    for row in csv.DictReader(text.splitlines()):
        sign = 1.0 if row["better"] == "lower" else -1.0
        key = (row["metric"], row["source"], row["cell"], row["version"])
        groups[key].append(sign * math.log(float(row["value"])))
    found: dict[str, list[Numbers]] = defaultdict(list)
    for (metric, *_), values in groups.items():
        if len(values) >= LEAST:
            away = np.array(values) - np.median(values)
            found[metric].append(away * math.sqrt(len(values) / (len(values) - 1)))
    return found
