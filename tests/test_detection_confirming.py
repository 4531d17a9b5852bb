"""Confirmation: what is asked for next, what becomes of it, and how verdicts are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from pytest_llamaperf.detection.confirming import Confirmation
from pytest_llamaperf.detection.deciding import CellVerdict, Decision, decide
from pytest_llamaperf.detection.orders import Order, Restart, pair_sides
from pytest_llamaperf.detection.readings import Cell, Side
from pytest_llamaperf.detection.rule import Allowance, Rule
from pytest_llamaperf.detection.screening import screen
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_MEDIAN, TTFT_MEDIAN, Better, Metric
from pytest_llamaperf.verdicts import Outcome

METRICS = (OUTPUT_THROUGHPUT, TPOT_MEDIAN)
SCREENED = "in 2 restarts against 5 of 1.1"
CONFIRMED = "in 6 pairs of fresh restarts with 1.1"


@dataclass
class Machine:
    """Engines with two metrics each; a restart gives both. `losses` and `noise` are true, `losses` by engine."""

    engines: int = 20
    losses: dict[str, float] = field(default_factory=dict)
    noise: float = 0.005
    seed: int = 1

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.names = [f"e{number:02}" for number in range(self.engines)]

    def restart(self, engine: str, side: Side) -> Restart:
        loss = self.losses.get(engine, 0.0) if side is Side.CANDIDATE else 0.0
        return Restart(engine, side, {cell: self._reading(cell.metric, loss) for cell in cells_of(engine)})

    def readings(self, side: Side, restarts: int) -> dict[Cell, list[float]]:
        made = [self.restart(engine, side) for engine in self.names for _ in range(restarts)]
        cells = [cell for engine in self.names for cell in cells_of(engine)]
        return {cell: [r.readings[cell] for r in made if r.engine == cell.engine] for cell in cells}

    def screened(self, rule: Rule | None = None, candidate: int = 2) -> Confirmation:
        history = [self.readings(Side.BASELINE, 3) for _ in range(4)]
        baseline, new = self.readings(Side.BASELINE, 5), self.readings(Side.CANDIDATE, candidate)
        return Confirmation(screen(baseline, new, history, rule or Rule(), "1.1"))

    def followed(self, confirmation: Confirmation) -> Confirmation:
        while orders := confirmation.orders:
            confirmation = confirmation.with_restarts(*(self.restart(o.engine, s) for o in orders for s in o.sides))
        return confirmation

    def _reading(self, metric: Metric, loss: float) -> float:
        level = 100 * (1 - loss) if metric.better is Better.HIGHER else 0.01 * (1 + loss)
        return float(level * np.exp(self.noise * self.rng.standard_normal()))


def cells_of(engine: str) -> list[Cell]:
    return [Cell(engine, f"{engine}/max-throughput", metric) for metric in METRICS]


def test_builds_take_turns() -> None:
    assert "".join(side[0] for side in pair_sides(4)) == "bccbbccb"


def test_a_loss_is_found_and_told_in_one_sentence() -> None:
    machine = Machine(losses={"e03": 0.04})

    decision = decide(machine.followed(machine.screened()))

    lost = decision.having(Outcome.REGRESSION)
    assert {verdict.cell for verdict in lost} == set(cells_of("e03"))
    assert decision.blocked
    assert not decision.released
    for verdict in lost:
        assert verdict.allowance.allowed < verdict.low < 0.04 < verdict.high
    assert "of fresh restarts with 1.1; allowed is 0.5 %" in lost[0].reason
    assert decision.reason.startswith("blocked: 2 of 40 cells lost more than is allowed, most of all e03")


def test_an_equal_build_passes_and_costs_little() -> None:
    machine = Machine(seed=5)

    decision = decide(machine.followed(machine.screened()))

    assert not decision.blocked
    assert decision.released
    assert decision.restarts <= 40
    assert decision.reason == "no regression is proven: 40 of 40 cells passed"


def test_the_candidate_is_restarted_first_and_then_both_in_turn() -> None:
    machine = Machine(losses={"e03": 0.05})
    confirmation = machine.screened()
    first = {order.engine: order.sides for order in confirmation.orders}

    assert first["e03"] == (Side.CANDIDATE,) * 2

    confirmation = confirmation.with_restarts(
        *(machine.restart(engine, side) for engine, sides in first.items() for side in sides)
    )

    assert Order("e03", tuple(pair_sides(3))) in confirmation.orders


def test_until_restarts_are_made_suspects_are_suspects() -> None:
    machine = Machine(losses={"e03": 0.05})

    decision = decide(machine.screened())

    assert {verdict.cell for verdict in decision.having(Outcome.SUSPECT)} >= set(cells_of("e03"))
    assert not decision.blocked
    assert not decision.released
    assert "fresh restarts of both will tell" in decision.having(Outcome.SUSPECT)[0].reason


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_restarts_given_back_in_parts_lead_to_the_same_verdicts(at_once: int) -> None:
    losses = {"e03": 0.04, "e07": 0.02, "e11": 0.01}
    whole, parts = Machine(losses=losses), Machine(losses=losses)
    everything = whole.followed(whole.screened())
    left = list(everything.restarts)
    confirmation = parts.screened()
    while orders := confirmation.orders:
        wanted = [order.engine for order in orders for _ in order.sides][:at_once]
        for engine in wanted:
            restart = next(r for r in left if r.engine == engine)
            left.remove(restart)
            confirmation = confirmation.with_restarts(restart)

    assert decide(confirmation).verdicts == decide(everything).verdicts
    assert not left


def test_an_engine_that_fails_half_way_loses_nothing() -> None:
    machine = Machine(losses={"e03": 0.05, "e05": 0.05})
    confirmation = machine.screened()
    for _ in range(2):
        made = [machine.restart(o.engine, s) for o in confirmation.orders for s in o.sides if o.engine != "e03"]
        confirmation = confirmation.with_restarts(*made, machine.restart("e03", Side.CANDIDATE))
        if {order.engine for order in confirmation.orders} == {"e03"}:
            break

    confirmation = machine.followed(confirmation.without("e03", "the candidate did not start: out of memory"))

    verdicts = {verdict.cell.engine: verdict for verdict in decide(confirmation).verdicts}
    assert verdicts["e05"].outcome is Outcome.REGRESSION
    assert verdicts["e03"].outcome is Outcome.INCONCLUSIVE
    assert verdicts["e03"].reason.endswith("(the candidate did not start: out of memory)")


def test_restarts_nobody_asked_for_are_refused() -> None:
    machine = Machine(losses={"e03": 0.05})
    confirmation = machine.screened()

    with pytest.raises(UsageError, match="the next restart is one of the candidate"):
        confirmation.with_restarts(machine.restart("e03", Side.BASELINE))
    with pytest.raises(UsageError, match="no restart was asked for"):
        confirmation.with_restarts(Restart("other", Side.CANDIDATE, {}))


def test_a_restart_has_to_give_every_reading() -> None:
    machine = Machine(losses={"e03": 0.05})
    confirmation = machine.screened()
    throughput, tpot = cells_of("e03")

    with pytest.raises(EngineError, match="restart of the candidate gave no reading of e03/max-throughput tpot_median"):
        confirmation.with_restarts(Restart("e03", Side.CANDIDATE, {throughput: 100.0}))
    with pytest.raises(EngineError, match="the candidate gave 0"):
        confirmation.with_restarts(Restart("e03", Side.CANDIDATE, {throughput: 0.0, tpot: 1.0}))


def test_a_build_that_is_slower_everywhere_says_that_the_baseline_may_be_stale() -> None:
    machine = Machine(losses={f"e{number:02}": 0.05 for number in range(15)})

    decision = decide(machine.followed(machine.screened(Rule(budget=20))))

    assert decision.stale is not None
    assert decision.stale.startswith("30 cells of 40 look slower")
    assert "measure the baseline again" in decision.stale
    assert decision.blocked


def test_restarts_stay_within_the_budget_when_nothing_was_lost() -> None:
    # a stale baseline, 3 % too fast: everything is a suspect, nothing a regression
    machine = Machine(engines=100, seed=2)
    screened = machine.screened().screening
    fast = {
        cell: [v * (1.03 if cell.metric.better is Better.HIGHER else 0.97) for v in machine_values]
        for cell, machine_values in machine.readings(Side.BASELINE, 5).items()
    }
    confirmation = Confirmation(screen(fast, machine.readings(Side.CANDIDATE, 2), (), screened.rule))

    decision = decide(machine.followed(confirmation))

    assert not decision.blocked
    assert decision.restarts <= 200
    assert any("budget" in verdict.reason for verdict in decision.having(Outcome.INCONCLUSIVE)) or decision.released


def test_an_anchor_sees_what_crept_in() -> None:
    anchor, now = Machine(losses={"e03": 0.032}, seed=4), Machine(losses={"e03": 0.008}, seed=4)

    assert {v.cell.engine for v in decide(anchor.followed(anchor.screened())).having(Outcome.REGRESSION)} == {"e03"}
    assert not decide(now.followed(now.screened())).blocked


def verdict(metric: Metric, outcome: Outcome, loss: float, reach: float, pairs: int = 6) -> CellVerdict:
    return CellVerdict(
        cell=Cell("e", "405b/tp8", metric),
        outcome=outcome,
        loss=loss,
        low=loss - reach,
        high=loss + reach,
        pairs=pairs,
        screened=(5, 2),
        allowance=Allowance(),
        against="1.1",
    )


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            lambda: verdict(OUTPUT_THROUGHPUT, Outcome.REGRESSION, 0.031, 0.012),
            f"lost 3.1 % (1.9 to 4.3 %) of output_throughput {CONFIRMED}; allowed is 0.5 %",
        ),
        (
            lambda: verdict(TTFT_MEDIAN, Outcome.REGRESSION, 0.05, 0.01),
            f"added 5 % (4 to 6 %) to ttft_median {CONFIRMED}; allowed is 0.5 %",
        ),
        (
            lambda: verdict(OUTPUT_THROUGHPUT, Outcome.PASS, -0.01, 0.012, pairs=0),
            f"gained 1 % (2.2 % gained to 0.2 % lost) of output_throughput {SCREENED}; a loss of 3 % or more is excluded",
        ),
        (
            lambda: verdict(TPOT_MEDIAN, Outcome.INCONCLUSIVE, -0.01, 0.005),
            f"saved 1 % (0.5 to 1.5 %) of tpot_median {CONFIRMED}; neither a loss beyond 0.5 % nor one below 3 % is proven",
        ),
    ],
)
def test_sentences(made: Callable[[], CellVerdict], reason: str) -> None:
    assert made().reason == reason


def test_a_decision_counts_what_is_open() -> None:
    made = [verdict(OUTPUT_THROUGHPUT, outcome, 0.01, 0.01) for outcome in (Outcome.PASS, Outcome.INCONCLUSIVE)]

    decision = Decision(tuple(made), 12)

    assert (decision.blocked, decision.released) == (False, False)
    assert decision.reason == "no regression is proven: 1 of 2 cells passed, 1 too noisy to tell"
