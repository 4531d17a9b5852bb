"""The same metric of the same case on both sides, and what only one side has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_llamaperf.measurements import Source
from pytest_llamaperf.observations import Observation

_SOURCES = [source.value for source in Source]  # the best evidence first
_PARTS = 6  # of a case's id; of these the first two, hardware and engine, are what a result was made on and by


@dataclass(frozen=True)
class Build:
    """One side of a comparison.

    name    what it is called in sentences: a version, a folder
    absent  case -> why it has no values, where that is known: an error, a reason for skipping
    """

    name: str
    observations: tuple[Observation, ...]
    absent: Mapping[str, str] = field(default_factory=dict)


class Pair(NamedTuple):
    before: Observation
    after: Observation


@dataclass(frozen=True)
class Pairing:
    """`earlier` are further values of what is paired, of runs before the latest ones: they tell how much restarts differ."""

    pairs: tuple[Pair, ...]
    only_before: tuple[Observation, ...]
    only_after: tuple[Observation, ...]
    earlier: tuple[Observation, ...]


_Key = tuple[str, str]
_Values = Mapping[_Key, list[Observation]]


def pair_up(before: Iterable[Observation], after: Iterable[Observation]) -> Pairing:
    """By case and metric; of sides that were made on other hardware, or by another engine, by what is left of the case.

    Where a side has a value more than once, the latest is taken, and each source and harness is paired with its own. Only
    where the two sides have none in common are different ones put side by side, for `likeness` to refuse.
    """
    mine, theirs = _by_key(before), _by_key(after)
    together = [(ours, theirs[key]) for key, ours in mine.items() if key in theirs]
    lonely = len(mine) > len(together) or len(theirs) > len(together)
    elsewhere = _elsewhere(mine, theirs) if lonely else {}
    together += [(mine[key], theirs[other]) for key, other in elsewhere.items()]
    pairs: list[Pair] = []
    earlier: list[Observation] = []
    for ours, others in together:
        if len(ours) == len(others) == 1:
            pairs.append(Pair(ours[0], others[0]))
        else:
            chosen = _chosen(_latest(ours), _latest(others))
            taken = {id(one) for pair in chosen for one in pair}
            pairs += chosen
            earlier += [one for one in (*ours, *others) if id(one) not in taken]
    if not lonely:
        return Pairing(tuple(pairs), (), (), tuple(earlier))
    only_before = _alone(mine, theirs.keys() | elsewhere.keys())
    return Pairing(tuple(pairs), only_before, _alone(theirs, mine.keys() | set(elsewhere.values())), tuple(earlier))


def _by_key(observations: Iterable[Observation]) -> dict[_Key, list[Observation]]:
    found: dict[_Key, list[Observation]] = defaultdict(list)
    for one in observations:
        found[one.case, one.metric].append(one)
    return found


def _elsewhere(mine: _Values, theirs: _Values) -> dict[_Key, _Key]:
    """Of what was made where the other side has nothing: the same work, where it leaves no choice."""
    ours, others = _by_work(mine, _places(theirs)), _by_work(theirs, _places(mine))
    return {ours[work][0]: others[work][0] for work in ours if len(ours[work]) == 1 and len(others.get(work, ())) == 1}


def _place(case: str) -> tuple[str, ...]:
    return tuple(case.split("/")[:2])


def _places(values: Iterable[_Key]) -> set[tuple[str, ...]]:
    return {_place(case) for case, _ in values}


def _by_work(values: Iterable[_Key], elsewhere: set[tuple[str, ...]]) -> dict[_Key, list[_Key]]:
    """Of what was made where the other side has nothing."""
    found: dict[_Key, list[_Key]] = defaultdict(list)
    for case, metric in values:
        parts = case.split("/")
        if len(parts) == _PARTS and _place(case) not in elsewhere:
            found["/".join(parts[2:]), metric].append((case, metric))
    return found


_Kind = tuple[str, str]


def _latest(observations: Sequence[Observation]) -> dict[_Kind, Observation]:
    """By source and harness; of one time, the same one in whatever order they came."""
    found: dict[_Kind, Observation] = {}
    for one in sorted(observations, key=lambda each: (each.when or "", each.run, each.value)):
        found[one.source, one.harness] = one
    return found


def _chosen(ours: Mapping[_Kind, Observation], others: Mapping[_Kind, Observation]) -> list[Pair]:
    common = [Pair(one, others[kind]) for kind, one in ours.items() if kind in others]
    return common or [Pair(_best(ours), _best(others))]


def _best(latest: Mapping[_Kind, Observation]) -> Observation:
    return min(latest.values(), key=lambda one: (_SOURCES.index(one.source), one.harness))


def _alone(values: _Values, paired: AbstractSet[_Key]) -> tuple[Observation, ...]:
    return tuple(values[key][0] for key in sorted(values.keys() - paired))
