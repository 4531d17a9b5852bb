"""How often steps are seen that are none, and how well those that are there are found and placed: against known truth.

python benchmarks/history/steps.py            # writes the tables of README.md to standard output
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pytest_llamaperf.history.lines import Line
from pytest_llamaperf.history.steps import Step, steps_of
from pytest_llamaperf.observations import Observation

Numbers = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], Numbers]

NOISE = 0.01  # of one run, as a share


def even(rng: np.random.Generator, runs: int) -> Numbers:
    return NOISE * rng.standard_normal(runs)


def outliers(rng: np.random.Generator, runs: int) -> Numbers:
    """One run in 25 is slower by 5 to 30 %."""
    return even(rng, runs) - (rng.random(runs) < 0.04) * rng.uniform(0.05, 0.3, runs)


def in_rows(rng: np.random.Generator, runs: int) -> Numbers:
    """Half of a night's deviation lasts until the next night."""
    values = even(rng, runs)
    for night in range(1, runs):
        values[night] = 0.5 * values[night - 1] + np.sqrt(0.75) * values[night]
    return values


def drifting(rng: np.random.Generator, runs: int) -> Numbers:
    """Slower by 3 % in all, little by little."""
    return even(rng, runs) - np.linspace(0, 0.03, runs)


def heavy(rng: np.random.Generator, runs: int) -> Numbers:
    """Student's t with three degrees of freedom."""
    return NOISE * rng.standard_t(3, runs) / np.sqrt(3)


def line_of(values: Numbers, runs_of_a_version: int) -> Line:
    observations = tuple(
        Observation(
            "case", "output_throughput", "tok/s", "higher", "measured", float(value), "run", "harness",
            version=f"1.{number // runs_of_a_version}",
        )
        for number, value in enumerate(100 * np.exp(values))
    )  # fmt: skip
    return Line("case", "output_throughput", "measured", "harness", "tok/s", "higher", "", observations)


def seen(noise: Noise, seed: int, runs: int, each: int, change: float = 0.0, at: int = 0) -> tuple[Step, ...]:
    values = noise(np.random.default_rng(seed), runs)
    values[at * each :] += np.log1p(change)
    return steps_of(line_of(values, each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1000, help="simulated for each number")
    parser.add_argument("--seed", type=int, default=7_000_000)
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.lines)
    print("| lines without a step | 40 nights, a version each | 12 versions of 5 runs | 8 releases, a run each |")
    print("|---|---|---|---|")
    for noise in (even, outliers, in_rows, drifting, heavy):
        shapes = ((40, 1), (60, 5), (8, 1))
        shares = [sum(bool(seen(noise, seed, *shape)) for seed in seeds) / len(seeds) for shape in shapes]
        print(f"| {noise.__name__.replace('_', ' ')} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    print()
    print(
        "| change | runs after it | found | at the right version | within one version | another step as well | interval holds it |"
    )
    print("|---|---|---|---|---|---|---|")
    for change in (-0.02, -0.03, -0.05, -0.10):
        for after in (3, 6, 12):
            told = [seen(even, seed, 40, 1, change, 40 - after) for seed in seeds]
            print(f"| {change:.0%} | {after} | {_scored(told, 40 - after, change)} |")


def _scored(told: list[tuple[Step, ...]], at: int, change: float) -> str:
    found = [(steps, near[0]) for steps in told if (near := [s for s in steps if abs(_place(s) - at) <= 3])]
    right, within = (sum(abs(_place(step) - at) <= off for _, step in found) for off in (0, 1))
    more = sum(len(steps) > 1 for steps, _ in found)
    holds = sum(step.low <= change <= step.high for _, step in found)
    shares = (len(found) / len(told), *(count / max(len(found), 1) for count in (right, within, more, holds)))
    return " | ".join(f"{share:.0%}" if share in (0, 1) else f"{share:.1%}" for share in shares)


def _place(step: Step) -> int:
    return int(str(step.version).removeprefix("1."))


if __name__ == "__main__":
    main()
