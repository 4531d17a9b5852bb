"""A comparison as Markdown, for a comment on a pull request or the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_llamaperf.comparing import lines
from pytest_llamaperf.comparing.comparison import Comparison
from pytest_llamaperf.markdown import escaped
from pytest_llamaperf.wording import counted


def page(comparison: Comparison, most: int | None) -> str:
    """The conclusion on top; of the values, the worst `most`, or all."""
    return "\n".join(_lines(comparison, most)) + "\n"


def _lines(comparison: Comparison, most: int | None) -> Iterator[str]:
    yield f"## {escaped(comparison.before.name)} → {escaped(comparison.after.name)}"
    yield ""
    yield f"**{escaped(comparison.conclusion)}**"
    yield ""
    yield escaped(", ".join(f"{count:,} {word}" for word, count in lines.counts(comparison)))
    yield ""
    yield from _items(map(str, comparison.culprits))
    sides = (("before", comparison.before), ("after", comparison.after))
    yield from _items(f"{name}: {lines.described(build)}" for name, build in sides)
    if comparison.compared:
        yield from _items([f"differ: {lines.meant(comparison)}", *(f"also: {told}" for told in lines.also(comparison))])
    cases = lines.by_case(comparison.compared, most)
    if cases:
        yield from ("", "| case | metric | before | after | change | verdict |", "|---|---|--:|--:|---|---|")
    for case in cases:
        for each in case.values:
            why = "; ".join([each.conclusion, *map(str, each.phases)])
            cells = (case.case, each.metric, lines.value(each.before), lines.value(each.after), lines.change(each))
            yield f"| {' | '.join(map(escaped, cells))} | **{each.outcome}**: {escaped(why)} |"
    if hidden := len(comparison.compared) - sum(len(case.values) for case in cases):
        yield from ("", f"... and {counted(hidden, 'value')} more.")
    yield from _not_compared(comparison)


def _not_compared(comparison: Comparison) -> Iterator[str]:
    if comparison.unlike:
        yield from ("", "### Not compared, for the two differ", "")
        yield from _items(f"{which}: {'; '.join(told)}" for told, which in lines.refusals(comparison.unlike))
    for side, missing in (("before", comparison.missing), ("after", comparison.added)):
        if missing:
            yield from ("", f"### Only {side}", "")
            yield from _items(f"{which}{f' ({why})' if why else ''}" for why, which in lines.absences(missing))


def _items(texts: Iterable[str]) -> Iterator[str]:
    return (f"- {escaped(text)}" for text in texts)
