"""What values of a run were before it: lines that may be compared, breaks between them, and steps within them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_llamaperf.history.lines import Line, differing, lines_of
from pytest_llamaperf.history.steps import Step, steps_of
from pytest_llamaperf.history.versions import version_order
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.report.drawing import WIDTH, Figure, Layer, Values, axis, by_kind, figure, layer
from pytest_llamaperf.report.visible import visible_text
from pytest_llamaperf.wording import amount, change, counted

MOST_CHARTS = 6
_NO_VERSION = "no version"
_HEIGHT, _AXIS = 150, 56  # pixels: high, and left of the axis


@dataclass(frozen=True)
class Past:
    """A value of a run, in `unit`: the lines of its case and metric, those that began first coming first, with the steps of each."""

    case: str
    metric: str
    unit: str
    lines: tuple[Line, ...]
    steps: tuple[tuple[Step, ...], ...]

    @property
    def breaks(self) -> tuple[str, ...]:
        """What differs from a line to the next."""
        return tuple(visible_text(_break(one, other)) for one, other in pairwise(self.lines))

    @property
    def interest(self) -> tuple[int, int, int]:
        """Worse steps first, then any, then many observations."""
        steps = [step for several in self.steps for step in several]
        return (-sum(step.worse for step in steps), -len(steps), -sum(len(line.observations) for line in self.lines))


def pasts_of(own: Iterable[Observation], known: Iterable[Observation]) -> list[Past]:
    """Of every value of a run of which something else is `known`, most worth looking at first."""
    ours = {(each.case, each.metric): each for each in own}
    others = [
        each for each in known if (each.case, each.metric) in ours and each.run != ours[each.case, each.metric].run
    ]
    with_past = {(each.case, each.metric) for each in others}
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines_of([*others, *(each for key, each in ours.items() if key in with_past)]):
        groups.setdefault((line.case, line.metric), []).append(line)
    found = [
        Past(case, metric, ours[case, metric].unit, tuple(lines), tuple(steps_of(line) for line in lines))
        for (case, metric), unordered in groups.items()
        for lines in [sorted(unordered, key=_begin)]
    ]
    return sorted(found, key=lambda past: past.interest)


def _begin(line: Line) -> tuple[object, ...]:
    """Of its first version, whatever its source: a break is told where one line ends and the next begins."""
    first = line.observations[0]
    return version_order(first.version), first.when or ""


def drawn(pasts: Sequence[Past]) -> list[Figure]:
    return [_chart(past) for past in pasts[:MOST_CHARTS]]


def told(steps: Sequence[Step]) -> str:
    return visible_text(
        "; ".join(f"{s.change:+.1%} ({s.low:+.1%} to {s.high:+.1%}) at {s.version or s.when}" for s in steps)
    )


def _chart(past: Past) -> Figure:
    """Of the lines in the unit of the run's value; the table has all."""
    observed = [each for line in past.lines if line.unit == past.unit for each in line.observations]
    in_order = sorted(observed, key=lambda each: version_order(each.version))
    versions = list(dict.fromkeys(map(_version, in_order)))
    points: Values = []
    steps: Values = []
    breaks = [
        {"x": _version(line.observations[0]), "told": f"break: {why}"}
        for line, why in zip(past.lines[1:], past.breaks, strict=True)
        if line.unit == past.unit
    ]
    for number, (line, several) in enumerate(zip(past.lines, past.steps, strict=True)):
        if line.unit != past.unit:
            continue
        for each in line.observations:
            about = f"{amount(each.value, past.unit)} of {_version(each)}, {each.source}, {visible_text(each.harness)}"
            points.append({"x": _version(each), "y": each.value, "kind": each.source, "line": number, "told": about})
        for step in several:
            at = visible_text(step.version or _NO_VERSION)
            steps.append({"x": at, "label": f"{step.change:+.1%}", "told": f"step: {told([step])}"})
    x = axis(
        "version of TensorRT-LLM",
        scale={"domain": versions},
        ticks={"labelAngle": -40, "grid": False},
    )
    x["type"] = "ordinal"
    y = axis(past.unit, "y", scale={"zero": False, "nice": True}, ticks={"grid": True, "tickCount": 4})
    place = {"x": x, "y": y}
    line_mark = {"type": "line", "stroke": "var(--muted)", "strokeWidth": 1.2}
    step_mark = {"type": "rule", "stroke": "var(--bad)", "strokeWidth": 1.5, "strokeDash": [5, 3]}
    before = -(WIDTH - _AXIS) / len(versions) / 2  # a break is between two versions
    break_mark = {"type": "rule", "stroke": "var(--muted)", "strokeDash": [1, 3], "xOffset": before}
    label: Layer = {
        "data": {"values": steps},
        "mark": {"type": "text", "align": "left", "dx": 4, "fill": "var(--bad)", "y": 8},
        "encoding": {"x": x, "text": {"field": "label"}},
    }
    return figure(
        f"{past.case.partition('/')[2].partition('/')[2].replace('/', ' ')}, {past.metric}",
        f"{counted(len(points), 'value')} on {counted(len(past.lines), 'line')}; "
        + ("; ".join(f"step {told(several)}" for several in past.steps if several) or "no step"),
        [
            layer(points, line_mark, {**place, "detail": {"field": "line"}}),
            layer(breaks, break_mark, {"x": x}),
            layer(steps, step_mark, {"x": x}),
            label,
            layer(points, {"type": "point", "size": 60, "strokeWidth": 1.6, "opacity": 1}, {**place, **by_kind()}),
        ],
        height=_HEIGHT,
        left=_AXIS,
        bottom=78,
    )


def _break(one: Line, other: Line) -> str:
    """What differs between two lines, in words."""
    parts = [(name, getattr(one, name), getattr(other, name)) for name in differing(one, other)]
    return "; ".join(f"{name} {before or 'unknown'} -> {after or 'unknown'}" for name, before, after in parts)


def first_and_last(line: Line) -> str:
    """The versions of a line, and by how much the last value differs from the first."""
    first, last = line.observations[0], line.observations[-1]
    unit = visible_text(line.unit)
    if first is last:
        return f"{_version(first)}: {amount(first.value, unit)}"
    values = f"{amount(first.value, unit)} to {amount(last.value, unit)}, {change(last.value, first.value)}"
    return f"{_version(first)} to {_version(last)}: {values}"


def _version(one: Observation) -> str:
    return visible_text(one.version or _NO_VERSION)
