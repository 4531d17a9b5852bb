"""Two builds side by side: what was compared, what was refused, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from pytest_llamaperf.comparing.blame import Move
from pytest_llamaperf.comparing.judging import SCREEN, Compared, judge_all
from pytest_llamaperf.comparing.likeness import NEVER, Difference, differences, other_versions
from pytest_llamaperf.comparing.pairing import Build, Pair, pair_up
from pytest_llamaperf.detection.rule import Rule
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import counted

# The worst first.
_ORDER = (Outcome.REGRESSION, Outcome.ERROR, Outcome.SUSPECT, Outcome.INCONCLUSIVE, Outcome.PASS)
_PLACES = {outcome: number for number, outcome in enumerate(_ORDER)}


@dataclass(frozen=True)
class Unlike:
    """A pair that is not compared, with all in which it differs; `allowed` apart."""

    pair: Pair
    differences: tuple[Difference, ...]
    allowed: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Missing:
    """What one side has and the other has not; `why` is told where it is known."""

    observation: Observation
    why: str | None = None


@dataclass(frozen=True)
class Culprit:
    """An operator, and the cases that it made slower more than any other operator did."""

    kind: str
    moves: tuple[Move, ...]
    of: int

    def __str__(self) -> str:
        typical = median(move.by / move.before for move in self.moves if move.before) if self.moves else 0.0
        return (
            f"{self.kind} moved most in {len(self.moves):,} of {counted(self.of, 'case')} that got slower "
            f"({typical * 100:+.1f} % in the middle one)"
        )


@dataclass(frozen=True)
class Comparison:
    """`compared`: regressions, then suspects, then what is open, then passes; in each the biggest loss first.

    missing are values that only `before` has, added those that only `after` has.
    """

    before: Build
    after: Build
    compared: tuple[Compared, ...]
    unlike: tuple[Unlike, ...]
    missing: tuple[Missing, ...]
    added: tuple[Missing, ...]
    rule: Rule

    def having(self, outcome: Outcome) -> tuple[Compared, ...]:
        return tuple(each for each in self.compared if each.outcome is outcome)

    @cached_property
    def counts(self) -> Counter[str]:
        """Of outcomes, and of what could not be compared: unlike, missing, added."""
        counts = Counter(each.outcome.value for each in self.compared)
        lists = {"unlike": self.unlike, "missing": self.missing, "added": self.added}
        return counts + Counter({name: len(several) for name, several in lists.items()})

    @property
    def culprits(self) -> tuple[Culprit, ...]:
        """Of predictions that got slower and say how long operators take: what moved most, by the number of cases."""
        slower: dict[str, Move | None] = {}
        for each in self.having(Outcome.REGRESSION):
            if phases := [phase for phase in each.phases if phase.slower_without_aside > 0]:
                worst = max(phases, key=lambda phase: phase.slower_without_aside)
                slower[each.case] = slower.get(each.case) or worst.culprit
        moves = [move for move in slower.values() if move]
        kinds = Counter(move.kind for move in moves)
        return tuple(
            Culprit(kind, tuple(move for move in moves if move.kind == kind), len(slower))
            for kind, _ in kinds.most_common()
        )

    @property
    def stale(self) -> bool:
        """So many suspects that it may be the machine, or the day, and not the build."""
        screened = sum(each.low is not None for each in self.compared)
        return len(self.having(Outcome.SUSPECT)) > self.rule.capped * screened

    @property
    def conclusion(self) -> str:
        """One sentence."""
        if lost := self.having(Outcome.REGRESSION):
            worst = lost[0]
            return (
                f"{self.after.name} is worse in {len(lost):,} of {counted(len(self.compared), 'value')} by more than is "
                f"allowed, most of all {worst.case}: {worst.reason}"
            )
        if not self.compared:
            lists = (f"{self.counts[name]:,} {name}" for name in ("unlike", "missing", "added") if self.counts[name])
            return f"nothing could be compared: {', '.join(lists) or 'there is nothing'}"
        parts = [f"{len(self.having(Outcome.PASS)):,} of {counted(len(self.compared), 'value')} passed"]
        words = {
            Outcome.SUSPECT: "look worse and are to be confirmed",
            Outcome.ERROR: "cannot be",
            Outcome.INCONCLUSIVE: "cannot be told",
        }
        parts += [f"{len(self.having(outcome)):,} {said}" for outcome, said in words.items() if self.having(outcome)]
        return f"no regression is proven: {', '.join(parts)}"

    def changed_versions(self) -> Counter[tuple[str | None, str | None]]:
        """Versions of TensorRT-LLM before and after: the difference that is meant, by how many values have it."""
        return Counter((each.before.version, each.after.version) for each in self.compared)

    def other_differences(self) -> Counter[tuple[str, str, str]]:
        """Field, before and after, of other packages' versions and of what was allowed, by how many values have it."""
        return Counter(
            (each.field, shown(each.before), shown(each.after))
            for one in self.compared
            for each in (*other_versions(one.before, one.after), *one.allowed)
        )


def compare(before: Build, after: Build, *, allowed: Collection[str] = (), rule: Rule = SCREEN) -> Comparison:
    """`allowed` names fields in which results may differ, besides the version.

    Raises UsageError where both are the same run, or where units are to differ.
    """
    _refuse_itself(before, after)
    if never := [name for name in allowed if name in NEVER]:
        raise UsageError(f"{never[0]} cannot be allowed to differ: there is no change between different quantities")
    pairing = pair_up(before.observations, after.observations)
    alike: list[Pair] = []
    let_go: dict[int, tuple[Difference, ...]] = {}
    unlike: list[Unlike] = []
    for pair in pairing.pairs:
        found = differences(pair.before, pair.after)
        if refused := tuple(each for each in found if each.field not in allowed):
            unlike.append(Unlike(pair, refused, tuple(each for each in found if each.field in allowed)))
            continue
        if found:
            let_go[len(alike)] = found
        alike.append(pair)
    compared = judge_all(alike, let_go, pairing.earlier, before.name, rule)
    return Comparison(
        before,
        after,
        tuple(sorted(compared, key=_place)),
        tuple(sorted(unlike, key=lambda each: (each.pair.after.case, each.pair.after.metric))),
        _missing(pairing.only_before, after),
        _missing(pairing.only_after, before),
        rule,
    )


def shown(value: object) -> str:
    return "not told" if value is None else str(value)


def _place(compared: Compared) -> tuple[int, float, str, str]:
    loss = float("-inf") if compared.loss is None else compared.loss
    return (_PLACES[compared.outcome], -loss, compared.after.case, compared.after.metric)


def _missing(alone: Iterable[Observation], other: Build) -> tuple[Missing, ...]:
    return tuple(Missing(one, other.absent.get(one.case)) for one in alone)


def _refuse_itself(before: Build, after: Build) -> None:
    """A mistake of whoever typed it, which a table full of passes would hide."""
    ours, theirs = ({(one.run, one.version) for one in build.observations if one.run} for build in (before, after))
    if ours and ours == theirs:
        runs = ", ".join(sorted({run for run, _ in ours})[:3])
        raise UsageError(f"{before.name} and {after.name} are the same ({runs}): there is nothing to compare")
