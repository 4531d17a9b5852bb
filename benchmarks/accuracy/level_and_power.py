"""Level and power of the accuracy gate, on simulated candidates whose truth is known.

    python benchmarks/accuracy/level_and_power.py                  # 2,000 comparisons for each row
    python benchmarks/accuracy/level_and_power.py --times 10000    # closer

Candidates differ from the reference on 5 % of the documents by chance, or on 2 % or 8 % with `--discordance`, as many
better as worse. Documents are independent, or made from templates of 5 to 15 or 30 to 170: each template has its own
chances to lose and to gain, with a correlation of 0.1 between two of its documents. About one minute on two cores.

`effect` is the design effect; the columns after it are shares of comparisons. A candidate that truly loses the margin:

    wrong pass        it passes, which is to happen in 5 % at the most
    wrong alarm       it is called a regression, which is to happen in 5 % at the most

A candidate that is truly equal:

    false alarm       it is called a regression
    power             it passes; beside it what `power.Plan` expects

A candidate that truly loses twice the margin:

    caught            it is called a regression; beside it what `power.Plan` expects
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pytest_llamaperf.accuracy.paired import interval
from pytest_llamaperf.accuracy.power import Plan, planned

Numbers = NDArray[np.float64]

DOCUMENTS = (200, 500, 1319, 3000, 14000)
MARGINS = (0.01, 0.03)
AT_ONCE = 2_000_000  # sums of clusters held at a time: 16 MB an array


@dataclass(frozen=True)
class Shape:
    """How documents are made: templates of `smallest` to `largest` documents, alike by `likeness`."""

    name: str
    smallest: int
    largest: int
    likeness: float

    def sizes(self, documents: int) -> list[int]:
        """Documents of each template; the last one is cut short."""
        rng = np.random.default_rng(documents)
        sizes: list[int] = []
        while (left := documents - sum(sizes)) > 0:
            sizes.append(min(int(rng.integers(self.smallest, self.largest + 1)), left))
        return sizes


SHAPES = (
    Shape("independent", 1, 1, 0.0),
    Shape("templates of 5 to 15", 5, 15, 0.1),
    Shape("templates of 30 to 170", 30, 170, 0.1),
)


@dataclass(frozen=True)
class Row:
    """Shares of simulated comparisons; see the top of this file."""

    shape: Shape
    plan: Plan
    templates: int
    wrong_pass: float
    wrong_alarm: float
    false_alarm: float
    power: float
    caught: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000, help="comparisons for each row, 2000 by default")
    parser.add_argument(
        "--discordance", type=float, default=5.0, metavar="PERCENT", help="differ by chance, 5 by default"
    )
    arguments = parser.parse_args()
    work = list(itertools.product(SHAPES, MARGINS, DOCUMENTS))
    row = partial(simulated, discordance=arguments.discordance / 100, times=arguments.times)
    with ProcessPoolExecutor(max_workers=2) as pool:
        rows = list(track(pool.map(row, *zip(*work, strict=True)), total=len(work), description="simulating"))

    console = Console(width=120)
    for shape in SHAPES:
        console.print(table(shape, [row for row in rows if row.shape == shape]))
    error = math.sqrt(0.05 * 0.95 / arguments.times)
    console.print(f"{arguments.times:,} comparisons a row: a share of 5 % has a standard error of {error:.1%}")


def simulated(shape: Shape, margin: float, documents: int, *, discordance: float, times: int) -> Row:
    sizes = shape.sizes(documents)
    plan = planned(sizes, likeness=shape.likeness, discordance=discordance, margin=margin)
    rng = np.random.default_rng([documents, round(margin * 1000), shape.largest])
    passed, alarmed = zip(
        *(shares(shape, plan, sizes, loss, times, rng) for loss in (margin, 0, 2 * margin)), strict=True
    )
    return Row(shape, plan, len(sizes), passed[0], alarmed[0], alarmed[1], passed[1], alarmed[2])


def shares(
    shape: Shape, plan: Plan, sizes: Sequence[int], loss: float, times: int, rng: np.random.Generator
) -> tuple[float, float]:
    """How often a candidate that truly loses so much passes, and is called a regression."""
    counts, passed, alarmed, left = np.array(sizes), 0, 0, times
    while left > 0:
        some = min(left, max(AT_ONCE // len(sizes), 1))
        sums = drawn(counts, plan.discordance / 2 + loss, plan.discordance / 2, shape.likeness, some, rng)
        _, low, high = interval(sums, counts.astype(float), plan.alpha)
        passed += int((low > -plan.margin).sum())
        alarmed += int((high < -plan.margin).sum())
        left -= some
    return passed / times, alarmed / times


def drawn(
    counts: NDArray[np.int64], lost: float, gained: float, likeness: float, times: int, rng: np.random.Generator
) -> Numbers:
    """Sums of differences by template, whose chances to lose and gain are Dirichlet-distributed about those given."""
    shape = (times, len(counts))
    if not likeness:
        losses = rng.binomial(counts, lost, shape)
        return (rng.binomial(counts - losses, gained / (1 - lost)) - losses).astype(float)
    sharpness = 1 / likeness - 1
    down, up, rest = (rng.gamma(sharpness * share, size=shape) for share in (lost, gained, 1 - lost - gained))
    losses = rng.binomial(counts, down / (down + up + rest))
    return (rng.binomial(counts - losses, up / (up + rest)) - losses).astype(float)


def table(shape: Shape, rows: Sequence[Row]) -> Table:
    made = Table(title=shape.name, title_justify="left", box=MARKDOWN)
    for heading in (
        "margin", "documents", "templates", "effect", "wrong pass", "wrong alarm", "false alarm", "power", "expected",
        "caught", "expected",
    ):  # fmt: skip
        made.add_column(heading, justify="right")
    for row in rows:
        expected_power, expected_caught = row.plan.power, row.plan.caught()
        made.add_row(
            f"{row.plan.margin * 100:g} points" if row.plan.margin != 0.01 else "1 point",
            f"{row.plan.documents:,}",
            f"{row.templates:,}",
            f"{row.plan.design_effect:.1f}",
            *(f"{share:.1%}" for share in (row.wrong_pass, row.wrong_alarm, row.false_alarm)),
            *(f"{share:.0%}" for share in (row.power, expected_power, row.caught, expected_caught)),
        )
    return made


if __name__ == "__main__":
    main()
