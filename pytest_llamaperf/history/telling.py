"""A history as tables: a row for each version of each case, breaks and steps between them, and what it all means below."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pytest_llamaperf.history import Excerpt, Group
from pytest_llamaperf.history.alerts import alert_of
from pytest_llamaperf.history.lines import Line, differing, lines_of
from pytest_llamaperf.history.steps import Step, steps_of
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.wording import amount, change, counted, printable

UP, DOWN = "▲", "▼"
MANY = 400  # rows, beyond which a line shows its last versions alone
LAST = 5


def overview(groups: Sequence[Group]) -> Iterator[RenderableType]:
    """What there is to ask for."""
    table = _table("model", "on", "source", right=("cases", "values"), last=("versions",))
    for group in groups:
        versions = group.versions
        shown = ", ".join(versions if len(versions) <= 6 else [*versions[:2], "...", *versions[-3:]])
        cells = (group.model, group.hardware, group.source, f"{group.cases:,}", f"{group.values:,}", shown or "-")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    yield table
    yield Text()
    yield Text("values by version: llamaperf history --model MODEL --gpu GPU", style="dim")


def tables(observations: Sequence[Observation]) -> Iterator[RenderableType]:
    """One for each model, hardware, scenario and metric."""
    lines = lines_of(observations)
    notes = _Notes(last=LAST if sum(len(line.levels) for line in lines) > MANY else None)
    for title, group in groupby(sorted(lines, key=_title), key=_title):
        yield Text(title, style="bold")
        yield _of_lines(list(group), notes)
        yield Text()
    yield from notes.told()


def excerpt(found: Excerpt) -> Iterator[RenderableType]:
    """The tables of what was found, and first how much was not."""
    shown = len({each.case for each in found.observations})
    if shown < found.cases:
        told = (
            f"the first {shown:,} of {found.cases:,} cases, {len(found.observations):,} of {found.values:,} values: "
            "name fewer by --metric, --workload, --layout or --version; or --all"
        )
        yield Text(told, style="yellow")
        yield Text()
    yield from tables(found.observations)


@dataclass
class _Notes:
    """What stands below the tables: harnesses by letter, and findings in the order in which they were met.

    `last` is how many versions of a line are shown, None for all.
    """

    last: int | None = None
    letters: dict[tuple[str, str, str], str] = field(default_factory=dict)
    findings: list[Text] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)
    broken: bool = False
    single: bool = False

    def letter(self, line: Line) -> str:
        """a to z, then aa: of what a value was measured by."""
        number = len(self.letters)
        name = (chr(ord("a") + number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)
        return self.letters.setdefault((line.source, line.harness, line.machine), name)

    def told(self) -> Iterator[Text]:
        yield from self.findings
        for (source, harness, machine), letter in self.letters.items():
            yield Text(
                printable(f"[{letter}] {source}, {harness}" + (f"; on {machine}" if machine else "")), style="dim"
            )
        for remark, number in self.remarks.items():
            yield Text(f"{printable(remark)} ({counted(number, 'value')})", style="dim")
        if self.last:
            yield Text(f"the last {self.last} versions of each; all: name fewer cases, or --json", style="dim")
        if self.broken:
            yield Text("break: nothing is compared across it", style="dim")
        if self.single:
            yield Text(
                "change: against the version before, of single values where runs is 1: no interval is known",
                style="dim",
            )


def _of_lines(lines: Sequence[Line], notes: _Notes) -> Table:
    table = _table("recipe", "layout", "ISL/OSL", "version", right=("value", "change", "runs"), last=("by", ""))
    for case, group in groupby(sorted(lines, key=_place), key=lambda line: line.case):
        of_case = list(group)
        names = _names(case)
        for number, line in enumerate(of_case):
            if number:
                notes.broken = True
                other = ", ".join(differing(of_case[number - 1], line))
                table.add_row(
                    "", "", "", *(Text(cell, style="yellow") for cell in ("break", "", "", "", "", f"other {other}"))
                )
            for row in _rows(line, notes):
                table.add_row(*names, *row)
                names = ["", "", ""]
    return table


def _rows(line: Line, notes: _Notes) -> Iterator[list[RenderableType]]:
    letter, levels = notes.letter(line), line.levels
    steps = {(step.before, step.version, step.when): step for step in steps_of(line)}
    if found := alert_of(line):
        notes.findings.append(Text(printable(f"alert: {found}"), style="bold yellow"))
    before: float | None = None
    hidden = max(len(levels) - (notes.last or len(levels)), 0)
    if hidden:
        yield [Text(f"... {hidden} before", style="dim"), *[Text()] * 5]
    for number, (earlier, level) in enumerate(pairwise([(), *levels])):
        value = statistics.median(each.value for each in level)
        mark = Text()
        if earlier and (step := steps.get((earlier[-1].version, level[0].version, level[0].when))):
            mark = _mark(line, step, notes)
        for remark in {str(each.settings["note"]) for each in level if each.settings.get("note")}:
            notes.remarks[f"{level[0].version}: {remark}"] = notes.remarks.get(f"{level[0].version}: {remark}", 0) + 1
            mark.append("*", style="yellow")
        notes.single = notes.single or (before is not None and len(level) == 1)
        moved = "" if before is None or before == 0 else change(value, before)
        name = level[0].version or level[0].when or "unknown"
        cells = (name, amount(value, line.unit).removesuffix(" tok/s"), moved, f"{len(level):,}", letter)
        if number >= hidden:
            yield [*(Text(printable(cell)) for cell in cells), mark]
        before = value


def _mark(line: Line, step: Step, notes: _Notes) -> Text:
    style = "bold red" if step.worse else "bold green"
    told = (
        f"step: {line.case} {line.metric} moved by {step.change * 100:+.1f} % ({step.low * 100:+.1f} to "
        f"{step.high * 100:+.1f} %) at {step.version or step.when or 'unknown'}: {counted(step.runs, 'run')} against "
        f"{step.runs_before} before; {'worse' if step.worse else 'better'}"
    )
    notes.findings.append(Text(printable(told), style=style))
    return Text(f"{UP if step.change > 0 else DOWN} step", style=style)


def _title(line: Line) -> str:
    hardware, model, _, _, scenario, _ = _parts(line.case)
    unit = ", tok/s" if line.unit == "tok/s" else ""
    return printable(f"{model} on {hardware} | {scenario} | {line.metric}{unit}")


def _names(case: str) -> list[RenderableType]:
    _, _, recipe, layout, _, lengths = _parts(case)
    return [Text(printable(name)) for name in (recipe, layout, lengths)]


def _place(line: Line) -> tuple[object, ...]:
    """By recipe, layout and lengths as numbers; lines of a case stay as they came."""
    _, _, recipe, layout, _, lengths = _parts(line.case)
    numbers = [int(part) if part.isdecimal() else 0 for part in lengths.split("/")]
    return recipe, len(layout), layout, numbers, line.case


def _parts(case: str) -> tuple[str, str, str, str, str, str]:
    """hardware, model, recipe, layout, scenario and lengths (ISL/OSL), or a task; of another kind of id all in one."""
    parts = case.split("/")
    if len(parts) != 6:
        return "?", "?", "", "", "?", case
    hardware, _, model, recipe, layout, work = parts
    scenario, dash, osl = work.rpartition("-")
    inner, again, isl = scenario.rpartition("-")
    if dash and again and isl.isdecimal() and osl.isdecimal():
        return hardware, model, recipe, layout, inner, f"{isl}/{osl}"
    return hardware, model, recipe, layout, work, ""


def _table(*left: str, right: Sequence[str] = (), last: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in left:
        table.add_column(heading, header_style="dim", overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", header_style="dim", no_wrap=True)
    for heading in last:
        table.add_column(heading, header_style="dim", overflow="fold")
    return table
