"""How long `llamaperf compare` takes by the number of results, and how that grows: `python benchmarks/compare/speed.py`.

Of every size: reading the two files, comparing in memory, and drawing the table, in seconds of the processor, for other
processes of a shared machine are not to be counted; of the last two the least of three tries. Without the garbage collector, as
in the command. Prints a table and writes growth.svg.
"""

from __future__ import annotations

import gc
import io
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.comparing.comparison import compare
from pytest_llamaperf.comparing.pairing import Build
from pytest_llamaperf.comparing.tables import parts
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.metrics import metric_named
from pytest_llamaperf.observations import observations_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import RunHeader, read_run, run_document, to_json

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)  # results on both sides together
TRIES = 3
METRICS = (
    "output_throughput", "output_throughput_per_gpu", "output_speed_per_user", "ttft_median", "ttft_p99", "tpot_median",
    "tpot_p99", "request_latency_median",
)  # fmt: skip
SETTINGS = {
    "max_batch_size": 2048,
    "max_num_tokens": 8192,
    "kv_fraction": 0.9,
    "checkpoint": "3f9c1e7",
    "streaming": True,
}
COLORS = {"reading": "#8a8f98", "comparing": "#c1121f", "showing": "#1d3557"}


def run(results: int, source: str, version: str) -> str:
    """The text of a run.json: three restarts with noise of 0.6 %, or predictions with their operators."""
    rng = random.Random(version)
    restarts = 3 if source == "measured" else 1
    found = []
    for number in range(results):
        case = case_of_key(
            "h200", f"tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/concurrency-{1 + number // len(METRICS)}-128-128"
        )
        metric = metric_named(METRICS[number % len(METRICS)])
        values = tuple(100 * math.exp(0.006 * rng.gauss(0, 1)) for _ in range(restarts))
        operators = {"GEMM": 0.01 * rng.uniform(1, 1.1), "attention": 0.004, "all-reduce": 0.002, "other": 0.001}
        found.append(
            Result(
                f"suites/test_speed.py::test_{number}", case.to_dict(), metric.name, metric.unit, metric.better.value,
                source, values, sum(values) / restarts, None, None, None, "no-baseline", "", (),
                {"versions": {"tensorrt_llm": version}, "settings": SETTINGS}, None,
                {} if source == "measured" else {"decode": operators, "prompt": operators},
            )
        )  # fmt: skip
    tests = [TestRecord(result.nodeid, "passed", 1.0, results=(result,)) for result in found]
    header = RunHeader(version, "2026-11-22T10:00:00Z", "h200", source, {}, {"driver": "570.1"})
    return to_json(run_document(header, tests, Decision(())))


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(results: int, source: str, folder: Path) -> dict[str, float]:
    """Least seconds of each step."""
    builds: list[Build] = []
    files = [folder / f"{version}.json" for version in ("1.1", "1.2")]
    for path in files:
        path.write_text(run(results // 2, source, path.stem), encoding="utf-8")

    def reading() -> None:
        builds[:] = [Build(path.stem, observations_of(read_run(path))) for path in files]

    def showing() -> None:
        console = Console(file=io.StringIO(), width=120)
        for part in parts(comparison, 40):
            console.print(part)

    found = {"reading": seconds(reading)}
    comparison = compare(*builds)
    found["comparing"] = min(seconds(lambda: compare(*builds)) for _ in range(TRIES))
    found["showing"] = min(seconds(showing) for _ in range(TRIES))
    return found


def drawn(title: str, growth: Mapping[int, Mapping[str, float]]) -> Sequence[str]:
    """Seconds over results, both logarithmic: what grows in proportion rises by 45 degrees."""
    width, height, left = 420, 320, 60
    most, least = 100.0, 0.001

    def x(results: int) -> float:
        return left + (width - left) * math.log10(results / SIZES[0]) / math.log10(SIZES[-1] / SIZES[0])

    def y(value: float) -> float:
        return 30 + (height - 60) * math.log10(most / max(value, least)) / math.log10(most / least)

    told = [f'<text x="{left}" y="16" font-size="14">{title}</text>']
    for exponent in range(-3, 3):
        at = y(10.0**exponent)
        dash = "" if exponent else ' stroke-dasharray="4"'
        told.append(f'<path d="M{left} {at:.1f}H{width}" stroke="{"#ddd" if exponent else "#000"}"{dash}/>')
        told.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**exponent:g} s</text>')
    for results in growth:
        told.append(f'<text x="{x(results):.1f}" y="{height - 10}" text-anchor="middle">{results:,}</text>')
    for step, color in COLORS.items():
        points = " ".join(f"{x(results):.1f},{y(found[step]):.1f}" for results, found in growth.items())
        told.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        told.append(f'<text x="{width + 6}" y="{y(growth[SIZES[-1]][step]) + 4:.1f}" fill="{color}">{step}</text>')
    return told


def main() -> None:
    gc.disable()
    plots = []
    for number, source in enumerate(("measured", "predicted")):
        print(f"\n{source}\n\n| results | {' | '.join(COLORS)} |\n|--:|{'--:|' * len(COLORS)}")
        growth = {}
        for results in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                growth[results] = measured(results, source, Path(folder))
            print(f"| {results:,} | {' | '.join(f'{growth[results][step]:.3f} s' for step in COLORS)} |", flush=True)
        plots += [f'<g transform="translate({520 * number} 0)">', *drawn(source, growth), "</g>"]
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1040 320" font-family="sans-serif" font-size="11">'
    background = '<rect width="1040" height="320" fill="white"/>'
    target = Path(__file__).parent / "growth.svg"
    target.write_text("\n".join([svg, background, *plots, "</svg>", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
