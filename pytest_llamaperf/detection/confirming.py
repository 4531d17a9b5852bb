"""Confirm: suspects are settled on fresh restarts of both builds, made in turn on the same machine.

Which engines to restart next, and what is known so far, both follow from the screening and the restarts made. So a
confirmation can be kept as the list of its restarts, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from pytest_llamaperf.detection.orders import Order, Restart
from pytest_llamaperf.detection.readings import refuse_impossible, some
from pytest_llamaperf.detection.replaying import Replay, Standing
from pytest_llamaperf.detection.screening import Screening
from pytest_llamaperf.errors import EngineError, UsageError


@dataclass(frozen=True, eq=False)
class Confirmation:
    """A screening, and the fresh restarts made since.

    failures  engine -> why it cannot be restarted; its suspects stay inconclusive
    """

    screening: Screening
    restarts: tuple[Restart, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def orders(self) -> tuple[Order, ...]:
        """What to restart next; parts of it may be given back. Nothing more to do when it is empty."""
        return self.standing.orders

    @cached_property
    def standing(self) -> Standing:
        return Replay(self.screening, self.restarts, self.failures).standing()

    def with_restarts(self, *made: Restart) -> Confirmation:
        """Raises UsageError for restarts nobody asked for, EngineError for missing or impossible readings."""
        asked = {order.engine: list(order.sides) for order in self.orders}
        for restart in made:
            if not asked.get(restart.engine):
                raise UsageError(f"{restart.engine}: no restart was asked for")
            if (side := asked[restart.engine].pop(0)) is not restart.side:
                raise UsageError(f"{restart.engine}: the next restart is one of the {side}, not of the {restart.side}")
            self._refuse(restart)
        return replace(self, restarts=(*self.restarts, *made))

    def without(self, engine: str, why: str) -> Confirmation:
        """That engine is not restarted any more; what it gave so far is kept."""
        return replace(self, failures={**self.failures, engine: why})

    def _refuse(self, restart: Restart) -> None:
        cells = [cell for cell in self.screening.cells if cell.engine == restart.engine]
        if missing := [cell for cell in cells if cell not in restart.readings]:
            raise EngineError(f"a restart of the {restart.side} gave no reading of {some(missing)}")
        for cell in cells:
            refuse_impossible(cell, restart.side, [restart.readings[cell]])
