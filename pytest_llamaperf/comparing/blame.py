"""Which operator's time moved, where both sides are predictions that say how long their operators take."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

# Of a metric by the beginning of its name; every other one has both in it.
_PHASES = {"tpot": ("decode",), "ttft": ("prompt",)}
_BOTH = ("decode", "prompt")

_RATIO = " vs "

LEAST = 0.0005  # of a phase: what is less is shown as 0.0 %
SHOWN = 3

Operators = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Move:
    """Seconds that operators of one kind take in one iteration."""

    kind: str
    before: float
    after: float

    @property
    def by(self) -> float:
        return self.after - self.before

    @property
    def relative(self) -> str:
        return f"{self.by / self.before * 100:+.1f} %" if self.before else "new"


@dataclass(frozen=True)
class Phase:
    """An iteration, `decode` or `prompt`, in which something moved.

    moves  by size; those of `aside` kinds are not blamed, for they were timed otherwise
    """

    name: str
    before: float
    after: float
    moves: tuple[Move, ...]
    aside: tuple[str, ...] = ()

    @property
    def slower(self) -> float:
        """Relative; negative for faster."""
        return self.after / self.before - 1

    @property
    def slower_without_aside(self) -> float:
        """As if what is not to be blamed had not moved."""
        return self.slower - sum(move.by for move in self.moves if move.kind in self.aside) / self.before

    @property
    def culprit(self) -> Move | None:
        """What moved most in the direction in which the iteration moved."""
        same_way = [move for move in self._blamed if move.by * self.slower_without_aside > 0]
        return same_way[0] if same_way else None

    @property
    def _blamed(self) -> list[Move]:
        return [move for move in self.moves if move.kind not in self.aside]

    def __str__(self) -> str:
        way = "slower" if self.slower >= 0 else "faster"
        told = f"{self.name} {abs(self.slower) * 100:.1f} % {way}: {', '.join(self._told())}"
        for move in self.moves:
            if move.kind in self.aside:
                told += f"; {move.kind} {move.relative} is not blamed: the two tables timed it in different ways"
        return told

    def _told(self) -> list[str]:
        shown, rest = self._blamed[:SHOWN], self._blamed[SHOWN:]
        if len(shown) == 1 and len(self.moves) == 1:
            told = [f"{shown[0].kind} {shown[0].relative}"]
        else:
            told = [f"{self._points(move.by)} by {move.kind} ({move.relative})" for move in shown]
        others = sum(move.by for move in rest)
        return [*told, f"{self._points(others)} by all else" if rest else "all else equal"]

    def _points(self, seconds: float) -> str:
        return f"{seconds / self.before * 100:+.1f} points"


def blame(
    metric: str, before: Operators, after: Operators, aside: Collection[tuple[str, str]] = ()
) -> tuple[Phase, ...]:
    """Of each iteration that the metric is made of, what moved in it. Empty where nothing did, or nobody says.

    aside  iteration and kind of what is not to be blamed
    """
    if _RATIO in metric:
        return ()  # what moved in the other case is not known
    phases = next((phases for start, phases in _PHASES.items() if metric.startswith(start)), _BOTH)
    found = (
        _phase(name, before[name], after[name], [kind for phase, kind in aside if phase == name])
        for name in phases
        if name in before and name in after
    )
    return tuple(phase for phase in found if phase is not None)


def _phase(name: str, before: Mapping[str, float], after: Mapping[str, float], aside: Collection[str]) -> Phase | None:
    total = sum(before.values())
    kinds = dict.fromkeys((*before, *after))
    moves = [Move(kind, before.get(kind, 0.0), after.get(kind, 0.0)) for kind in kinds]
    moved = sorted((m for m in moves if abs(m.by) >= LEAST * total > 0), key=lambda move: (-abs(move.by), move.kind))
    if not moved:
        return None
    return Phase(name, total, sum(after.values()), tuple(moved), tuple(m.kind for m in moved if m.kind in aside))
