"""A comparison in words, for whatever shows it: cells of its tables, and sentences on what could not be compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pytest_llamaperf.comparing.comparison import Comparison, Missing, Unlike
from pytest_llamaperf.comparing.judging import Compared
from pytest_llamaperf.comparing.likeness import Difference
from pytest_llamaperf.comparing.pairing import Build
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.wording import amount, counted

LONGEST = 100  # characters of a setting's value
EXAMPLES = 3


@dataclass(frozen=True)
class CaseLines:
    """One case of a comparison: its values, the worst first, and what moved in its iterations."""

    case: str
    values: tuple[Compared, ...]

    @property
    def moves(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(phase) for value in self.values for phase in value.phases))


def by_case(compared: Iterable[Compared], most: int | None) -> list[CaseLines]:
    """Cases in the order of their worst values, as many as have `most` values in all, and one at least."""
    cases: dict[str, list[Compared]] = defaultdict(list)
    for each in compared:
        cases[each.case].append(each)
    found: list[CaseLines] = []
    shown = 0
    for case, values in cases.items():
        if found and most is not None and shown + len(values) > most:
            break
        shown += len(values)
        found.append(CaseLines(case, tuple(values)))
    return found


def change(compared: Compared) -> str:
    """`8.1 % worse (5.2 to 11.0 %)`: worse is worse, whichever way is better for the metric."""
    if compared.loss is None:
        return "-"
    told = _signed(compared.loss)
    if compared.low is None or compared.high is None:
        return told
    if compared.low < 0 < compared.high:
        return f"{told} ({_signed(compared.low)} to {_signed(compared.high)})"
    ends = sorted((abs(compared.low), abs(compared.high)))
    return f"{told} ({ends[0] * 100:.1f} to {ends[1] * 100:.1f} %)"


def value(observation: Observation) -> str:
    return amount(observation.value, observation.unit)


def described(build: Build) -> str:
    """`TensorRT-LLM 1.2.1, measured, 42 values of run 8a1c`."""
    observations = build.observations
    versions = _listed(f"TensorRT-LLM {one.version}" for one in observations if one.version)
    sources = _listed(one.source for one in observations)
    runs = {one.run for one in observations}
    came = f"of {next(iter(runs))}" if len(runs) == 1 else f"of {counted(len(runs), 'run')}"
    return ", ".join(part for part in (versions, sources, f"{counted(len(observations), 'value')} {came}") if part)


def meant(comparison: Comparison) -> str:
    """The difference that the comparison is about."""
    versions = comparison.changed_versions()
    told = [
        f"{before or 'not told'} -> {after or 'not told'}{_times(count, len(comparison.compared))}"
        for (before, after), count in versions.most_common()
        if before != after
    ]
    if told:
        return f"TensorRT-LLM {', '.join(told)}"
    same = _listed(f"TensorRT-LLM {version}" for version, _ in versions if version)
    return f"none in the version: both are {same}" if same else "no version of TensorRT-LLM is told"


def also(comparison: Comparison) -> list[str]:
    """What else differs in values that were compared: versions of other packages, and what was allowed."""
    return [
        f"{field} {_short(before)} -> {_short(after)}{_times(count, len(comparison.compared))}"
        for (field, before, after), count in comparison.other_differences().most_common()
    ]


def conclusions(compared: Iterable[Compared]) -> list[tuple[str, str, int]]:
    """Outcome, what it rests on, and how many values have it, in the order of the first of each."""
    counts = Counter((each.outcome.value, each.conclusion) for each in compared)
    return [(outcome, conclusion, count) for (outcome, conclusion), count in counts.items()]


def refusals(unlike: Sequence[Unlike]) -> Iterator[tuple[list[str], str]]:
    """For all values that differ in the same: each difference in words, and which values they are."""
    alike: dict[tuple[str, ...], list[Unlike]] = defaultdict(list)
    for each in unlike:
        alike[tuple(map(difference, each.differences))].append(each)
    for told, values in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        yield list(told), cases_of([each.pair.after for each in values])


def absences(missing: Sequence[Missing]) -> Iterator[tuple[str, str]]:
    """Why, where it is known, on one line, and which values they are."""
    alike: dict[str, list[Observation]] = defaultdict(list)
    for each in missing:
        alike["; ".join((each.why or "").split("\n"))].append(each.observation)
    for why, observations in sorted(alike.items(), key=lambda item: (not item[0], item[0])):
        yield why, cases_of(observations)


def cases_of(observations: Sequence[Observation]) -> str:
    """`3 values of 2 cases: a, b`, the first few by name."""
    cases = list(dict.fromkeys(one.case for one in observations))
    more = f" and {len(cases) - EXAMPLES:,} more" if len(cases) > EXAMPLES else ""
    named = ", ".join(islice(cases, EXAMPLES))
    return f"{counted(len(observations), 'value')} of {counted(len(cases), 'case')}: {named}{more}"


def difference(found: Difference) -> str:
    return f"{found.field} is {_short(_said(found.before))} before and {_short(_said(found.after))} after"


def counts(comparison: Comparison) -> list[tuple[str, int]]:
    """Each with its word, in the order of importance."""
    words = ("regression", "error", "suspect", "inconclusive", "pass", "unlike", "missing", "added")
    return [(word, comparison.counts[word]) for word in words if comparison.counts[word]]


def _signed(loss: float) -> str:
    if not loss:
        return "same"
    return f"{abs(loss) * 100:.1f} % {'worse' if loss > 0 else 'better'}"


def _said(value: object) -> str:
    return "not told" if value is None else repr(value) if isinstance(value, str) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _listed(words: Iterable[str]) -> str:
    different = sorted(set(words))
    more = [f"{len(different) - EXAMPLES} more"] if len(different) > EXAMPLES else []
    return ", ".join([*different[:EXAMPLES], *more])


def _times(count: int, of: int) -> str:
    return "" if count == of else f" ({counted(count, 'value')})"
