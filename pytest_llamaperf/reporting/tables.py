"""The end of a run in the terminal: what was promised, what came out, and what follows."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import Result
from pytest_llamaperf.reporting.published import WARNING, published_lines
from pytest_llamaperf.wording import amount, change, counted

STYLES = {
    "pass": "green",
    "regression": "bold red",
    "error": "bold red",
    "inconclusive": "yellow",
    "suspect": "yellow",
    "no-baseline": "yellow",
}
# Units that every value of a metric is shown in; seconds and bytes are scaled value by value.
_UNITS_IN_TITLE = ("tok/s",)


def summary_text(results: Sequence[Result], *, width: int, color: bool) -> str:
    """A table for each model, GPU and metric with what others published of it, the counts, and the notes on values."""
    parts: list[RenderableType] = []
    warning: list[RenderableType] = []
    for title, group in groupby(sorted(results, key=_title), key=_title):
        rows = list(group)
        published = [Text(line, style="dim") for line in published_lines(rows)]
        parts += [Text(title, style="bold"), _table(rows), *published, Text()]
        if published:
            warning = [Text(f"note: {WARNING}", style="dim")]
    return rendered([*parts, _counts(results), *_notes(results), *warning], width=width, color=color)


def decision_text(decision: Decision, beside: Sequence[str] = (), *, width: int, color: bool) -> str:
    """May this build be released, and what stands against it; a reason stays on one line, to be searched for.

    `beside` is what `gates.told_beside` says of it.
    """
    style = "bold red" if not decision.releasable else "bold yellow" if decision.waived else "bold green"
    told = [Text(decision.headline, style=style)]
    told += [Text(f"  - {reason}") for reason in decision.reasons]
    told += [Text(f"  - waived: {each}", style="yellow") for each in decision.waived]
    told += [Text(each, style="dim") for each in beside]
    if len(decision.missing) > 1:
        told.append(Text(f"run.json (--results) lists all {len(decision.missing)} that are missing", style="dim"))
    return rendered(told, width=width, color=color, wrap=False)


def rendered(parts: Iterable[RenderableType], *, width: int, color: bool, wrap: bool = True) -> str:
    """Rich output as a string, for a terminal that somebody else owns."""
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    for part in parts:
        console.print(part, soft_wrap=not wrap)
    # Trailing blanks wrap in terminals one column narrower than they say.
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def _title(result: Result) -> str:
    """What all rows of a table have in common."""
    work = result.case["workload"] or result.case["task"]
    metric = f" | {result.metric}" if result.metric else ""
    unit = f", {result.unit}" if result.unit in _UNITS_IN_TITLE else ""
    return f"{result.case['model']} on {result.case['hardware']} | {work}{metric}{unit}"


def _table(results: Sequence[Result]) -> Table:
    sources = sorted({result.source for result in results if result.source})
    promises = sorted({str(result.baseline["source"]) for result in results if result.baseline})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("recipe", "layout", "ISL/OSL"):
        table.add_column(heading, style="", header_style="dim", overflow="fold")
    for heading in ("published" if promises == ["published"] else "promised", "/".join(sources) or "value", "change"):
        table.add_column(heading, justify="right", header_style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in sorted(results, key=_place):
        _, _, _, recipe, layout, work = str(result.case["id"]).split("/")
        promised = result.baseline["value"] if result.baseline else None
        table.add_row(
            recipe,
            layout,
            work if result.case["task"] else work.removeprefix(f"{result.case['workload']}-").replace("-", "/"),
            _cell(promised, result.unit),
            _cell(result.value, result.unit),
            "" if promised is None or result.value is None else change(result.value, promised),
            Text(result.outcome + (", waived" if result.waiver else ""), style=STYLES.get(result.outcome, "")),
        )
    return table


def _place(result: Result) -> tuple[str, int, int, int, int, int]:
    """Rows in the same order whatever order the tests ran in: by recipe, layout and lengths."""
    case = result.case
    return (case["recipe"], case["tp"], case["pp"], case["dp"], case["isl"] or 0, case["osl"] or 0)


def _cell(value: float | None, unit: str | None) -> str:
    if value is None or unit is None:
        return "-"
    return amount(value, unit).removesuffix(f" {unit}" if unit in _UNITS_IN_TITLE else "")


def _counts(results: Sequence[Result]) -> Text:
    text = Text()
    for outcome, style in STYLES.items():
        count = sum(result.outcome == outcome for result in results)
        if count:
            text.append(f"{', ' if text else ''}{count} {outcome}", style=style)
    if any(result.source == "predicted" for result in results):
        text.append("; predictions, not measurements", style="dim")
    return text


def _notes(results: Sequence[Result]) -> list[Text]:
    """Each note once, with how many results it qualifies."""
    counts: dict[str, int] = {}
    for result in results:
        for note in result.notes:
            counts[note] = counts.get(note, 0) + 1
    return [Text(f"note: {note} ({counted(count, 'result')})", style="dim") for note, count in counts.items()]
