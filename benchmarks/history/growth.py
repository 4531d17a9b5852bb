"""How long the history takes as it grows: import of a run's values, and questions, each in a process's first minute.

    python benchmarks/history/growth.py --draw benchmarks/history/growth.svg

Times are the best of three; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from pytest_llamaperf.history import open_history
from pytest_llamaperf.history.telling import tables
from pytest_llamaperf.observations import Observation

SIZES = (1_000, 10_000, 100_000, 1_000_000)
METRICS = ("output_throughput", "ttft_median", "ttft_p99", "tpot_median", "tpot_p99")
CASES, RUN = 200, 1_000  # a run is of 200 cases with five metrics each
LIMIT_IMPORT, LIMIT_QUESTION = 20.0, 1.0  # seconds at 100,000 values
COLORS = ("#c1121f", "#1d3557", "#2a9d8f", "#e9a100", "#7b2cbf", "#588157")
WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 860, 430, 70, 40, 480, 330


def case(number: int) -> str:
    return f"h200/tensorrt-llm/model-{number % 10}/modelopt-fp8/tp{2 ** (number // 10 % 4)}/max-throughput-{number}-128"


def values(number: int, seed: int = 1) -> Iterator[Observation]:
    rng = random.Random(seed)
    machine = {
        "gpus": [{"name": "h200", "product": "NVIDIA H200", "uuid": f"GPU-{n}"} for n in range(8)],
        "driver": "580",
    }
    for n in range(number):
        run, place = divmod(n, RUN)
        value = 100 * math.exp(0.01 * rng.gauss(0, 1))
        yield Observation(
            case(place % CASES), METRICS[place // CASES], "s", "lower", "measured", value, f"run-{run}", "pytest-llamaperf/tensorrt-llm",
            version=f"1.{run // 20}.0rc{run % 20}", when=f"{2026 + run // 300}-01-01", values=(value, value * 1.01, value * 0.99),
            low=value * 0.99, high=value * 1.01, versions={"tensorrt_llm": f"1.{run // 20}.0rc{run % 20}"},
            settings={"max_batch_size": 64, "max_num_tokens": 8192}, machine=machine, outcome="pass",
        )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(size: int, folder: Path) -> dict[str, float]:
    place = str(folder / f"{size}.sqlite")
    given = list(values(size)) if size <= 100_000 else values(size)
    with open_history(place, create=True) as opened:
        taken = {"import": seconds(lambda: opened.add(given))}
    last = (size - 1) // RUN

    def asked(ask: Callable[..., object]) -> float:
        def once() -> None:
            with open_history(place) as opened:
                ask(opened)

        return min(seconds(once) for _ in range(3))

    taken["a case and metric, with steps"] = asked(lambda h: list(tables(h.series(case(3), METRICS[0]))))
    taken["a run"] = asked(lambda h: h.of_run(f"run-{last}"))
    taken["a version"] = asked(lambda h: h.of_version(f"1.{last // 20}.0rc{last % 20}"))
    taken["what there is"] = asked(lambda h: h.groups())
    if size <= 100_000:
        taken["everything"] = asked(lambda h: h.find())
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=Path, metavar="SVG")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="values in the largest history")
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 where 100,000 values take longer than promised"
    )
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.most]
    with tempfile.TemporaryDirectory() as folder:
        found = {size: measured(size, Path(folder)) for size in sizes}
    names = list(found[sizes[0]])
    print("| values | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for size, taken in found.items():
        print(f"| {size:,} | " + " | ".join(f"{taken[name]:.3f} s" if name in taken else "-" for name in names) + " |")
    if options.draw:
        options.draw.write_text(
            drawn(sizes, {name: [found[s][name] for s in sizes if name in found[s]] for name in names})
        )
    late = {
        name: t
        for name, t in found.get(100_000, {}).items()
        if t > (LIMIT_IMPORT if name == "import" else LIMIT_QUESTION)
    }
    if options.check and late:
        raise SystemExit(f"longer than promised: {late}")


def drawn(sizes: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """Both axes are logarithmic: a straight line through each decade is growth in proportion."""
    low = math.floor(min(math.log10(t) for times in curves.values() for t in times))
    high = math.ceil(max(math.log10(t) for times in curves.values() for t in times))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(size: float) -> float:
        return LEFT + PLOT_WIDTH * (math.log10(size) - first) / max(last - first, 1)

    def y(taken: float) -> float:
        return TOP + PLOT_HEIGHT * (high - math.log10(taken)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape("Seconds by values in the history (SQLite)")}</text>',
        f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{HEIGHT - 15}" text-anchor="middle">values</text>',
    ]
    for decade in range(low, high + 1):
        parts.append(f'<path d="M{LEFT} {y(10**decade):.1f}h{PLOT_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(10**decade) + 4:.1f}" text-anchor="end">{10**decade:g} s</text>')
    for size in sizes:
        parts.append(f'<text x="{x(size):.1f}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle">{size:,}</text>')
    for number, (name, times) in enumerate(curves.items()):
        color = COLORS[number]
        points = " ".join(f"{x(size):.1f},{y(taken):.1f}" for size, taken in zip(sizes, times, strict=False))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        at = TOP + 12 + 24 * number
        parts.append(f'<path d="M{LEFT + PLOT_WIDTH + 15} {at - 4}h20" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{LEFT + PLOT_WIDTH + 42}" y="{at}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
