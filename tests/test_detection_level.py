"""Simulated releases whose truth is known: how often a clean one is blocked, and how many losses are found.

`benchmarks/detection` does this at length; here are enough releases to notice that a change broke it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from pytest_llamaperf.detection.confirming import Confirmation
from pytest_llamaperf.detection.deciding import Decision, decide
from pytest_llamaperf.detection.orders import Restart
from pytest_llamaperf.detection.readings import Cell, Side
from pytest_llamaperf.detection.screening import screen
from pytest_llamaperf.metrics import TPOT_MEDIAN, metric_named, metric_names
from pytest_llamaperf.verdicts import Outcome

CELLS = 100
RELEASES = 60


@dataclass(frozen=True)
class World:
    """Times per token with noise of 0.3 to 3 %; `outliers` is a share of restarts, `session` moves cached ones."""

    outliers: float = 0.0
    session: float = 0.0

    def decided(self, seed: int, losses: NDArray[np.float64]) -> Decision:
        rng = np.random.default_rng(seed)
        cells = [Cell(f"e{n:03}", f"c{n:03}", TPOT_MEDIAN) for n in range(CELLS)]
        noise = np.clip(0.007 * np.exp(0.7 * rng.standard_normal(CELLS)), 0.003, 0.03)

        def drawn(cell: int, restarts: int, loss: float = 0.0) -> list[float]:
            off = 0.15 * (rng.random(restarts) < self.outliers)
            return [float(v) for v in 0.01 * np.exp(noise[cell] * rng.standard_normal(restarts) + off + loss)]

        def cached(restarts: int, lost: NDArray[np.float64] | None = None) -> dict[Cell, list[float]]:
            moved = self.session * rng.standard_normal(CELLS) + (0.0 if lost is None else lost)
            return {cell: drawn(number, restarts, moved[number]) for number, cell in enumerate(cells)}

        history = [cached(3) for _ in range(5)]
        confirmation = Confirmation(screen(cached(5), cached(2, losses), history))
        while orders := confirmation.orders:
            made = []
            for order in orders:
                number = int(order.engine[1:])
                for side in order.sides:
                    loss = float(losses[number]) if side is Side.CANDIDATE else 0.0
                    made.append(Restart(order.engine, side, {cells[number]: drawn(number, 1, loss)[0]}))
            confirmation = confirmation.with_restarts(*made)
        return decide(confirmation)


@pytest.mark.parametrize(
    "world", [World(), World(outliers=0.04), World(session=0.007), World(outliers=0.04, session=0.007)], ids=str
)
def test_clean_releases_are_not_blocked_and_cost_little(world: World) -> None:
    made = [world.decided(seed, np.zeros(CELLS)) for seed in range(RELEASES)]

    # at 0.5 % four or more of 60 would be a chance of 0.03 %
    assert sum(decision.blocked for decision in made) <= 3
    assert np.mean([decision.restarts for decision in made]) / CELLS <= 1.1


@pytest.mark.parametrize(("world", "at_three", "at_five"), [(World(), 0.85, 0.95), (World(outliers=0.04), 0.75, 0.9)])
def test_losses_are_found(world: World, at_three: float, at_five: float) -> None:
    losses = np.zeros(CELLS)
    losses[::20], losses[1::20] = 0.03, 0.05
    made = [world.decided(seed, losses) for seed in range(20)]

    def found(loss: float) -> float:
        told = [d.verdicts[n].outcome is Outcome.REGRESSION for d in made for n in np.flatnonzero(losses == loss)]
        return float(np.mean(told))

    assert found(0.03) >= at_three
    assert found(0.05) >= at_five


def test_the_interval_of_a_confirmed_loss_holds_the_truth() -> None:
    losses = np.zeros(CELLS)
    losses[::5] = 0.05
    verdicts = [v for seed in range(10) for v in World().decided(seed, losses).having(Outcome.REGRESSION)]

    # Each end at 95 %; those found early look larger than they are, so the lower end misses more often.
    assert np.mean([verdict.high < np.expm1(0.05) for verdict in verdicts]) < 0.08
    assert np.mean([verdict.low > np.expm1(0.05) for verdict in verdicts]) < 0.12


def test_two_thousand_cells_are_decided_in_two_seconds() -> None:
    rng = np.random.default_rng(1)
    metrics = [metric_named(name) for name in metric_names()[:10]]
    cells = [Cell(f"e{case}", f"c{case}", metric) for case in range(200) for metric in metrics]
    sides = [{cell: np.exp(0.01 * rng.standard_normal(n)).tolist() for cell in cells} for n in (5, 2, 3, 3, 3)]
    begun = time.perf_counter()

    decide(Confirmation(screen(sides[0], sides[1], sides[2:])))

    assert time.perf_counter() - begun < 2
