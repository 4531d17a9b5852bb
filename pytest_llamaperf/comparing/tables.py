"""A comparison in the terminal: cases by their worst values, then why, then what could not be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pytest_llamaperf.comparing import lines
from pytest_llamaperf.comparing.comparison import Comparison
from pytest_llamaperf.comparing.lines import CaseLines
from pytest_llamaperf.wording import counted, printable

STYLES = {
    "regression": "bold red",
    "error": "bold red",
    "suspect": "yellow",
    "inconclusive": "yellow",
    "pass": "green",
    "unlike": "yellow",
    "missing": "yellow",
    "added": "",
}
_HEADINGS = ("metric", "before", "after", "change", "")
_ADVICE = {
    "suspect": "restarts of another day make suspects at most: pytest SUITES --against RUNTIME settles them on fresh restarts of both",
    "unlike": "to compare all the same what is unlike: --allow-difference FIELD",
}
_STALE = "so many suspects may be the machine, or the day, and not the build"


def parts(comparison: Comparison, most: int | None) -> Iterator[RenderableType]:
    """Of the values, the worst `most`, or all."""
    for name, build in (("before", comparison.before), ("after", comparison.after)):
        yield _line(f"{name:<8}{build.name}: {lines.described(build)}")
    if comparison.compared:
        yield _line(f"differ  {lines.meant(comparison)}")
    for told in lines.also(comparison):
        yield _line(f"also    {told}", "dim")
    shown = lines.by_case(comparison.compared, most)
    for case, table in zip(shown, _tables(shown), strict=True):
        yield Text()
        yield _line(case.case, "bold")
        yield table
        yield from (_line(f"  {told}") for told in case.moves)
    if hidden := len(comparison.compared) - sum(len(case.values) for case in shown):
        yield _line(f"\n... and {counted(hidden, 'value')} more: --all", "dim")
    yield Text()
    for outcome, conclusion, count in lines.conclusions(comparison.compared):
        yield _line(f"{outcome}: {conclusion} ({counted(count, 'value')})", "dim")
    yield from _not_compared(comparison)
    yield _counts(comparison)
    yield from map(_line, map(str, comparison.culprits))
    yield _line(comparison.conclusion, "bold")
    if comparison.stale:
        yield _line(_STALE)
    for word, advice in _ADVICE.items():
        if comparison.counts[word]:
            yield _line(f"to do: {advice}")


def _tables(cases: Sequence[CaseLines]) -> list[Table]:
    """Columns of all have the same widths, so that eyes can run down them."""
    rows = [
        [
            (each.metric, lines.value(each.before), lines.value(each.after), lines.change(each), each.outcome.value)
            for each in case.values
        ]
        for case in cases
    ]
    everything = [_HEADINGS, *(row for group in rows for row in group)]
    widths = [max(len(printable(row[column])) for row in everything) for column in range(len(_HEADINGS))]
    tables = []
    for number, group in enumerate(rows):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=number == 0)
        for column, heading in enumerate(_HEADINGS):
            table.add_column(
                f"  {heading}" if not column else heading,
                header_style="dim",
                justify="right" if column in (1, 2) else "left",
                no_wrap=column in (1, 2, 4),
                overflow="fold",
                min_width=widths[column] + 2 * (not column) if column != 3 else None,
            )
        for name, before, after, change, outcome in group:
            table.add_row(
                _line(f"  {name}"), _line(before), _line(after), _line(change), _line(outcome, STYLES[outcome])
            )
        tables.append(table)
    return tables


def _not_compared(comparison: Comparison) -> Iterator[RenderableType]:
    for told, which in lines.refusals(comparison.unlike):
        yield _line(f"not compared: {which}", "yellow")
        yield from (_line(f"    {each}") for each in told)
    for side, missing in (("before", comparison.missing), ("after", comparison.added)):
        for why, which in lines.absences(missing):
            yield _line(f"only {side}: {which}{f' ({why})' if why else ''}", "yellow")


def _counts(comparison: Comparison) -> Text:
    text = Text()
    for word, count in lines.counts(comparison):
        text.append(f"{', ' if text else ''}{count:,} {word}", style=STYLES[word])
    return text


def _line(text: str, style: str = "") -> Text:
    """Names come from files: they are no markup, and move no cursor."""
    return Text("\n".join(map(printable, text.split("\n"))), style=style)
