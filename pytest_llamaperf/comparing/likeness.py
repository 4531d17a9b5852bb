"""In what do two results differ, beyond the version that the comparison is about? By the table of `fingerprints`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pytest_llamaperf import fingerprints
from pytest_llamaperf.fingerprints import FORMAT, Meaning, Part, field_of, format_of
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.observations import RUNTIME, Observation

T = TypeVar("T")

# Packages that make the numbers, or ask the questions, rather than being under test.
INSTRUMENTS = fingerprints.named(Part.VERSIONS, Meaning.MATCH)

# May be allowed to differ, but then nothing is concluded: a change may be all theirs.
KINDS = ("source", "harness")

# Without these there is no change to speak of.
NEVER = ("unit", "better")

# What nobody watched is compared with nothing: its GPUs may have been slowed down.
WATCHED = "GPUs watched"

# Names that settings may not have for themselves; versions that are told, or refused, in another place.
_TAKEN = frozenset({"hardware", "engine", WATCHED, *KINDS, *NEVER, *INSTRUMENTS})
_ELSEWHERE = frozenset({*RUNTIME, *INSTRUMENTS})

# What is told where one side is of a time in which less was recorded.
NOT_TOLD = "fields not told"


@dataclass(frozen=True)
class Difference:
    """`before` and `after` are None where nobody says."""

    field: str
    before: Any
    after: Any


def differences(before: Observation, after: Observation) -> tuple[Difference, ...]:
    """All that must match and does not, in alphabetic order. Empty if the two may be compared.

    What one side does not say is a difference too, unless nothing said it when that side was made: see `other_versions`.
    Machines matter to measurements alone: a prediction is the same on each. Of different sources it is not told how else
    they differ: a prediction has other settings than a measurement.
    """
    found = [] if _of_one_kind(before, after) else list(_of_results(before, after))
    if before.source == after.source:
        ours, theirs = before.versions, after.versions
        for name in INSTRUMENTS if ours != theirs else ():
            if ours.get(name) != theirs.get(name):
                found.append(Difference(name, ours.get(name), theirs.get(name)))
        if before.source == Source.MEASURED:
            found += _of_machines(before.machine, after.machine).refused
        if before.settings != after.settings:
            found += (each for each, new in _of_settings(before, after) if not new)
    return tuple(sorted(found, key=lambda each: each.field)) if found else ()


def other_versions(before: Observation, after: Observation) -> Iterator[Difference]:
    """What may differ and does: versions of packages that came with another build, and of a machine what is only told.

    And, in one, which fields that must match are told by one side alone, because the other is of a time before them.
    """
    if before.versions != after.versions:
        for name in sorted(_unequal_names(before.versions, after.versions)):
            if name not in _ELSEWHERE:
                yield Difference(name, before.versions.get(name), after.versions.get(name))
    if before.source != after.source or before.source != Source.MEASURED:
        return
    machines = _of_machines(before.machine, after.machine)
    yield from machines.told
    new = list(machines.new)
    if before.settings != after.settings and min(map(format_of, (before.machine, after.machine))) < FORMAT:
        new += (each for each, is_new in _of_settings(before, after) if is_new)
    if new:
        yield Difference(
            NOT_TOLD,
            ", ".join(each.field for each in new if each.before is None) or None,
            ", ".join(each.field for each in new if each.after is None) or None,
        )


def _of_one_kind(before: Observation, after: Observation) -> bool:
    """Whether `_of_results` has nothing to tell: of most of a hundred thousand pairs."""
    return (
        before.case == after.case
        and before.source == after.source
        and before.harness == after.harness
        and before.unit == after.unit
        and before.better == after.better
        and not before.blind
        and not after.blind
    )


def _of_results(before: Observation, after: Observation) -> Iterator[Difference]:
    if before.case != after.case:
        ours, theirs = ((*one.case.split("/"), None, None) for one in (before, after))
        yield from _unequal({"hardware": (ours[0], theirs[0]), "engine": (ours[1], theirs[1])})
    if before.source != after.source:
        yield Difference("source", before.source, after.source)
    if before.harness != after.harness:
        yield Difference("harness", before.harness, after.harness)
    if before.unit != after.unit:
        yield Difference("unit", before.unit, after.unit)
    if before.better != after.better:
        yield Difference("better", before.better, after.better)
    if before.blind or after.blind:
        yield Difference(WATCHED, *(f"no: {one.blind}" if one.blind else "yes" for one in (before, after)))


def _of_settings(before: Observation, after: Observation) -> Iterator[tuple[Difference, bool]]:
    """Each that must match, and whether the one side that does not say it could not have."""
    for name in sorted(_unequal_names(before.settings, after.settings)):
        if field_of(Part.SETTINGS, name).meaning is Meaning.MATCH:
            ours, theirs = before.settings.get(name), after.settings.get(name)
            silent = before if ours is None else after if theirs is None else None
            told = f"setting {name}" if _is_taken(name, before, after) else name
            yield Difference(told, ours, theirs), silent is not None and _is_new(name, silent)


def _is_taken(setting: str, before: Observation, after: Observation) -> bool:
    """Whether something else has this name."""
    if setting in _TAKEN:
        return True
    return before.source == Source.MEASURED and any(setting in _told(each.machine) for each in (before, after))


def _is_new(setting: str, silent: Observation) -> bool:
    """Whether the side that does not say it is of a time before it. Only measurements tell of what time they are."""
    _, engine, *_ = (*silent.case.split("/"), "")
    since = fingerprints.since(setting, engine, silent.versions)
    return silent.source == Source.MEASURED and since > format_of(silent.machine)


@dataclass(frozen=True)
class _Machines:
    """In what two machines differ: what must match, what is told, and what must match and one could not tell."""

    refused: tuple[Difference, ...]
    told: tuple[Difference, ...]
    new: tuple[Difference, ...]


class _Kept(Generic[T]):
    """Answers about mappings by which ones they are: a hundred thousand results share those of a few runs.

    It holds on to what it was asked about, so that no other mapping can have its identity meanwhile.
    """

    MOST = 10_000

    def __init__(self, answer: Callable[..., T]) -> None:
        self._answer = answer
        self._known: dict[tuple[int, ...], tuple[tuple[Mapping[str, Any], ...], T]] = {}

    def __call__(self, *asked: Mapping[str, Any]) -> T:
        known = self._known.get(tuple(map(id, asked)))
        if known is not None:
            return known[1]
        if len(self._known) >= self.MOST:
            self._known.clear()
        found = self._answer(*asked)
        self._known[tuple(map(id, asked))] = (asked, found)
        return found


_told = _Kept(fingerprints.told)


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> _Machines:
    if before == after:
        return _Machines((), (), ())
    ours, theirs = _told(before), _told(after)
    by_meaning: dict[Meaning, list[Difference]] = {meaning: [] for meaning in Meaning}
    new: list[Difference] = []
    for each in _unequal({name: (ours.get(name), theirs.get(name)) for name in sorted(ours.keys() | theirs.keys())}):
        field = field_of(Part.MACHINE, each.field)
        silent = before if each.before is None else after if each.after is None else None
        if silent is not None and field.since > format_of(silent):
            new += [each] if field.meaning is Meaning.MATCH else []
        else:
            by_meaning[field.meaning].append(each)
    return _Machines(tuple(by_meaning[Meaning.MATCH]), tuple(by_meaning[Meaning.TOLD]), tuple(new))


_of_machines = _Kept(_compared)


def _unequal(values: Mapping[str, tuple[Any, Any]]) -> Iterator[Difference]:
    return (Difference(name, ours, theirs) for name, (ours, theirs) in values.items() if ours != theirs)


def _unequal_names(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
