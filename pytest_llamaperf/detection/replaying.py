"""Where a confirmation stands: what the restarts made so far say, and what to restart next.

Walked anew from the screening each time, so it is the same after an interruption.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llamaperf.detection.evidence import Loss, between, in_pairs, needed, promise, proven
from pytest_llamaperf.detection.orders import Order, Restart, pair_sides
from pytest_llamaperf.detection.readings import Side, logarithms
from pytest_llamaperf.detection.screening import Screening, suspicious
from pytest_llamaperf.verdicts import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_llamaperf.detection.readings import Flags, Numbers


@dataclass(frozen=True, eq=False)
class Standing:
    """What is known after some restarts.

    loss      of every cell by its latest evidence
    pairs     of fresh restarts behind it; 0 where it rests on the screen
    again     restarts of the candidate that the screen was given on top
    suspects  numbers of the cells that are tested together
    found     those of them that are regressions
    cut       suspects beyond the cap, left alone
    open      suspects that are worth more restarts
    orders    none when the confirmation is over; what is open then, the budget did not reach
    """

    loss: Loss
    pairs: NDArray[np.int64]
    again: NDArray[np.int64]
    suspects: tuple[int, ...] = ()
    found: frozenset[int] = frozenset()
    cut: int = 0
    open: frozenset[int] = frozenset()
    orders: tuple[Order, ...] = ()


class Replay:
    """Walks from the screening through all restarts to where things stand. Used once."""

    def __init__(self, screening: Screening, restarts: Iterable[Restart], failures: Container[str]) -> None:
        import numpy as np

        self.screening, self.failures = screening, failures
        self.rule, self.limits = self.screening.rule, self.screening.limits
        self.cells: dict[str, list[int]] = defaultdict(list)  # of each engine
        for number, cell in enumerate(self.screening.cells):
            self.cells[cell.engine].append(number)
        self.made: dict[str, list[Restart]] = defaultdict(list)
        for restart in restarts:
            self.made[restart.engine].append(restart)
        self.loss = self.screening.loss
        self.pairs = np.zeros(len(self.screening.cells), dtype=np.int64)
        self.again = self.pairs.copy()
        self.wanted: dict[str, list[Side]] = {engine: [] for engine in self.cells}  # so far
        self.looked = dict.fromkeys(self.cells, 0)  # how often

    def standing(self) -> Standing:
        doubtful = [n for n, got in enumerate(self.screening.outcomes) if got is Outcome.SUSPECT]
        if self.rule.again:
            more = dict.fromkeys(self._ranked(self._hopes(doubtful)), [Side.CANDIDATE] * self.rule.again)
            engines = self._pay(more, self._budget() / 2)
            if orders := self._orders(engines):
                waiting = frozenset(doubtful)
                return Standing(self.loss, self.pairs, self.again, tuple(doubtful), open=waiting, orders=orders)
            self._look_again(engines)
        suspects, cut = self._suspects(doubtful)
        return self._confirmed(suspects, cut)

    def _look_again(self, engines: Iterable[str]) -> None:
        import numpy as np

        more = np.full((len(self.screening.cells), self.rule.again), np.nan)
        for engine in engines:
            more[self.cells[engine]] = self._logarithms(engine, self.made[engine][: self.rule.again])
            self.again[self.cells[engine]] = self.rule.again
        candidate = np.concatenate([self.screening.candidate, more], axis=1)
        self.loss = between(self.screening.baseline, candidate, self.screening.noise)

    def _suspects(self, doubtful: Sequence[int]) -> tuple[list[int], int]:
        """The most suspicious ones, and how many are beyond the cap."""
        bad = suspicious(self.loss, self.limits, self.rule.second, self.rule.doubt)
        chance = self.loss.chance_of_noise()
        still = sorted((n for n in doubtful if bad[n]), key=lambda n: float(chance[n]))
        most = max(1, int(self.rule.capped * len(self.screening.cells)))
        return sorted(still[:most]), len(still[most:])

    def _confirmed(self, suspects: list[int], cut: int) -> Standing:
        """Round by round the most hopeful engines go on to their next look."""
        import numpy as np

        shares, found = np.full(len(self.pairs), np.inf), np.zeros(len(self.pairs), dtype=bool)
        hopes = self._hopes(suspects)
        orders: tuple[Order, ...] = ()
        while hopes:
            engines = self._go_on(hopes, found)
            orders = self._orders(engines)
            if orders or not engines:
                break
            alike: dict[int, list[str]] = defaultdict(list)
            for engine in engines:
                alike[self.looked[engine]].append(engine)
            for look, together in alike.items():
                still = self._look(together, look, shares, len(suspects) - int(found.sum()))
                hopes |= {n: hope for n, hope in still.items() if n in hopes}
            found[suspects] = proven(shares[suspects])
            hopes = {n: hope for n, hope in hopes.items() if hope > 0 and not found[n]}
        numbers = frozenset(int(n) for n in np.flatnonzero(found))
        return Standing(self.loss, self.pairs, self.again, tuple(suspects), numbers, cut, frozenset(hopes), orders)

    def _look(self, engines: Sequence[str], look: int, shares: Numbers, open_suspects: int) -> dict[int, float]:
        """Lowers the shares that the cells of these engines need, and gives their hopes; 0 if not worth more."""
        import numpy as np

        here = [n for engine in engines for n in self.cells[engine]]
        differences = np.concatenate([self._differences(engine) for engine in engines])
        noise, allowed, pairs = self.screening.noise.of(here), self.limits.allowed[here], differences.shape[1]
        loss = in_pairs(differences, noise)
        shares[here] = np.minimum(shares[here], needed(differences, loss, allowed, look, self.rule))
        self._learn(here, loss, pairs)
        self.looked |= dict.fromkeys(engines, look + 1)
        chances = promise(loss, noise, pairs, allowed, open_suspects, self.rule)
        passes = loss.estimate + loss.reach(self.rule.confidence) < self.limits.bound[here]
        enough = np.where(passes, self.rule.settled, self.rule.futile)
        return {n: float(hope) for n, hope in zip(here, np.where(chances > enough, chances, 0.0), strict=True)}

    def _learn(self, here: Sequence[int], loss: Loss, pairs: int) -> None:
        """Fresh pairs replace what the screen knew of these cells."""
        old = (self.loss.estimate.copy(), self.loss.error.copy(), self.loss.freedom.copy())
        for known, fresh in zip(old, (loss.estimate, loss.error, loss.freedom), strict=True):
            known[here] = fresh
        self.loss = Loss(*old)
        self.pairs[here] = pairs

    def _hopes(self, suspects: Sequence[int]) -> dict[int, float]:
        """Chances to be found, by the screen."""
        chances = promise(self.loss, self.screening.noise, 0, self.limits.allowed, len(suspects), self.rule)
        return {n: float(chances[n]) for n in suspects}

    def _go_on(self, hopes: Mapping[int, float], found: Flags) -> list[str]:
        """Engines of likely regressions, and the most hopeful others as long as there is money.

        What was spent on regressions, found or likely, does not count. Whom the money does not reach waits.
        """
        engine_of = [cell.engine for cell in self.screening.cells]
        likely = {engine_of[n] for n, hope in hopes.items() if hope >= self.rule.likely and self.looked[engine_of[n]]}
        free = likely | {engine_of[n] for n in found.nonzero()[0]}
        spent = sum(len(sides) for engine, sides in self.wanted.items() if engine not in free)
        more = {engine: self._next_pairs(engine) for engine in self._ranked(hopes)}
        surely = self._pay({engine: sides for engine, sides in more.items() if engine in likely}, math.inf)
        others = {engine: sides for engine, sides in more.items() if engine not in likely}
        return [*surely, *self._pay(others, self._budget() - spent)]

    def _ranked(self, hopes: Mapping[int, float]) -> list[str]:
        numbers = sorted(hopes, key=lambda n: (-hopes[n], n))
        return list(dict.fromkeys(self.screening.cells[n].engine for n in numbers))

    def _next_pairs(self, engine: str) -> list[Side]:
        look = self.looked[engine]
        done = self.rule.looks[look - 1] if look else 0
        return pair_sides(self.rule.looks[look])[2 * done :]

    def _pay(self, more: Mapping[str, list[Side]], money: float) -> list[str]:
        """Of these engines those that can go on and that the money reaches, in order."""
        paid = []
        for engine, sides in more.items():
            lacks = len(self.made[engine]) < len(self.wanted[engine]) + len(sides)
            if len(sides) <= money and not (lacks and engine in self.failures):
                money -= len(sides)
                self.wanted[engine] = [*self.wanted[engine], *sides]
                paid.append(engine)
        return paid

    def _budget(self) -> float:
        """Restarts. However small the suite, one suspect can be followed to the end."""
        return max(self.rule.budget * len(self.pairs), self.rule.again + 2 * self.rule.looks[-1])

    def _orders(self, engines: Iterable[str]) -> tuple[Order, ...]:
        left = {engine: tuple(self.wanted[engine][len(self.made[engine]) :]) for engine in engines}
        return tuple(Order(engine, sides) for engine, sides in left.items() if sides)

    def _differences(self, engine: str) -> Numbers:
        """Of all pairs paid, candidate less baseline: a row for each cell of the engine."""
        first = int(self.again[self.cells[engine][0]])
        made = self.made[engine][first : len(self.wanted[engine])]
        baseline, candidate = (self._logarithms(engine, [m for m in made if m.side is side]) for side in Side)
        return candidate - baseline

    def _logarithms(self, engine: str, made: Sequence[Restart]) -> Numbers:
        import numpy as np

        cells = [self.screening.cells[n] for n in self.cells[engine]]
        return np.array([logarithms(cell, [restart.readings[cell] for restart in made]) for cell in cells])
