"""What a run looks like: promises, throughput against latency, speed-ups, operators, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_MEDIAN
from pytest_llamaperf.report.drawing import (
    WIDTH,
    Figure,
    Layer,
    Values,
    axis,
    by_kind,
    figure,
    layer,
    log_axis,
    log_scale,
    named_rows,
)
from pytest_llamaperf.report.rows import Paired, Row, throughput
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, counted

# A page is read by people: of more than this, a chart shows those that matter most, and says so.
MOST_ROWS, MOST_PANELS = 8, 6
_MOST_NAMES = 6  # in one panel; the others are told under the pointer
_CURVE, _AXIS = 210, 48  # pixels high, and left of the axis

_POINT = {"type": "point", "size": 70, "strokeWidth": 1.6, "opacity": 1}
_LIMIT = {"type": "tick", "thickness": 2.5, "size": 16, "color": "var(--bad)", "yOffset": 6}


def against_promises(rows: Sequence[Row]) -> Figure | None:
    """Every value beside its promise: a row of the chart for each model, scenario and metric."""
    gains = {row: gain for row in rows if (gain := row.gain) is not None}
    if not gains:
        return None
    every = sorted(_grouped(gains, _topic).items(), key=lambda group: min(map(headroom, group[1])))
    groups = every[:MOST_ROWS]
    chosen = f", the {MOST_ROWS} of {len(every)} nearest to their limits" if len(every) > MOST_ROWS else ""
    points: Values = []
    limits: Values = []
    for number, (topic, found) in enumerate(groups):
        for row in found:
            told = f"{row.name}: {gains[row]:+.1%} against the promise, {row.result.outcome}"
            points.append({"row": number, "x": gains[row] * 100, "kind": row.mark, "told": told})
        tolerances = {row.promise.tolerance for row in found if row.promise and row.promise.limit is not None}
        at = [-allowed * 100 for allowed in tolerances]
        limits += [{"row": number, "x": x, "told": f"{topic}: the limit, {x:+.1f} %"} for x in at]
    y, names, height = named_rows([topic for topic, _ in groups], [_count(found) for _, found in groups])
    x = axis("% better than promised (left of the red line: broken)")
    return figure(
        f"Against the promises{chosen}",
        f"{counted(len(gains), 'value')} with a promise, {_count(gains)}; from {min(gains.values()):+.1%} to "
        f"{max(gains.values()):+.1%}, more is better",
        [
            names,
            *_ground(len(groups), 0.0, x, y),
            layer(points, {**_POINT, "size": 45, "yOffset": 6}, {"x": x, "y": y, **by_kind()}),
            layer(limits, _LIMIT, {"x": x, "y": y}),
        ],
        height=height,
    )


@dataclass(frozen=True)
class Curves:
    """Throughput against latency of a model, a panel for each ISL/OSL with more than one case; `left_out` are the others."""

    subject: str
    panels: tuple[Figure, ...]
    left_out: int


def curves(rows: Sequence[Row]) -> list[Curves]:
    """Of every case that has both: what all users get in sum, for each GPU, and what one of them sees."""
    found = []
    for model, ours in _grouped((row for row in rows if _has_both(row)), lambda row: row.subject).items():
        shapes = _grouped(ours, lambda row: row.lengths)
        wanted = {lengths: [*_each_case(of)] for lengths, of in shapes.items()}
        panels = sorted((lengths for lengths, cases in wanted.items() if len(cases) > 1), key=_by_length)
        shown = sorted(sorted(panels, key=lambda lengths: -len(wanted[lengths]))[:MOST_PANELS], key=_by_length)
        if shown:
            drawn = tuple(_curve(model, lengths, wanted[lengths]) for lengths in shown)
            found.append(Curves(model, drawn, len(wanted) - len(shown)))
    return found


def _curve(model: str, lengths: str, rows: Sequence[Row]) -> Figure:
    points: Values = []
    published: Values = []
    recipes = {row.recipe for row in rows}
    each = "rank" if rows[0].hardware == CPU else "GPU"
    for row in rows:
        x, y = 1 / row.metrics[TPOT_MEDIAN.name], (throughput(row) or 0.0) / row.gpus
        series = f"{row.recipe} {row.layout}"
        points.append(
            {"x": x, "y": y, "kind": row.mark, "series": series, "short": row.layout if len(recipes) == 1 else series,
             "told": f"{row.name}: {amount(y, 'tok/s')} a {each}, {amount(x, 'tok/s')} each user, {row.mark}"}
        )  # fmt: skip
        if row.promise and row.promise.value > 0 and row.result.metric == OUTPUT_THROUGHPUT.name:
            level = row.promise.value / row.gpus
            published.append(
                {"x": x, "y": level, "ours": y, "kind": row.promise.mark,
                 "told": f"{row.name}: {amount(level, 'tok/s')} a {each}, {row.promise.mark}"}
            )  # fmt: skip
    across = log_scale([point["x"] for point in points])
    up = log_scale([point["y"] for point in points + published])
    x_axis = axis("tok/s of one user (1/TPOT)", scale=across, ticks=log_axis(across))
    y_axis = axis(f"tok/s per {each}", "y", scale=up, ticks=log_axis(up))
    place = {"x": x_axis, "y": y_axis}
    return figure(
        f"ISL/OSL {lengths}" if lengths else model,
        f"{model}. Most throughput: {max(points, key=lambda point: point['y'])['told']}. "
        f"Fastest for one user: {max(points, key=lambda point: point['x'])['told']}.",
        [
            layer(
                points,
                {"type": "line", "stroke": "var(--muted)", "strokeWidth": 1, "strokeOpacity": 0.6},
                {**place, "detail": {"field": "series"}, "order": {"field": "y"}},
            ),
            layer(
                published,
                {"type": "rule", "stroke": "var(--published)", "strokeDash": [2, 2]},
                {**place, "y2": {"field": "ours"}},
            ),
            layer(points + published, _POINT, {**place, **by_kind()}),
            *(
                {
                    "data": {"values": labels},
                    "mark": {"type": "text", "align": side.align, "dx": side.dx, "dy": side.dy},
                    "encoding": {**place, "text": {"field": "short"}},
                }
                for side, labels in _labels(points, across["domain"], up["domain"]).items()
            ),
        ],
        height=_CURVE,
        left=_AXIS,
    )


@dataclass(frozen=True)
class _Side:
    """Where a name stands beside its point, in pixels."""

    align: str
    dx: int
    dy: int


_SIDES = (
    _Side("left", 9, -7),
    _Side("left", 9, 9),
    _Side("right", -9, -7),
    _Side("right", -9, 9),
    _Side("left", 9, 21),
)


def _labels(points: Values, across: Sequence[float], up: Sequence[float]) -> dict[_Side, Values]:
    """The names of series at their points of most throughput, on the first side where they cover nothing else."""
    named: dict[str, dict[str, Any]] = {}
    for point in sorted(points, key=lambda point: -point["y"]):
        named.setdefault(point["series"], point)
    at = {id(point): _pixels(point, across, up) for point in points}
    boxes = [(x - 6, x + 6, y) for x, y in at.values()]
    found: dict[_Side, Values] = {}
    for point in list(named.values())[:_MOST_NAMES]:
        x, y = at[id(point)]
        wide = 6.0 * len(point["short"])
        for side in _SIDES:
            left, level = x + side.dx - (wide if side.align == "right" else 0), y + side.dy
            free = all(abs(level - other) > 11 or left > to or left + wide < start for start, to, other in boxes)
            if free and left >= 0 and left + wide <= WIDTH - _AXIS:
                boxes.append((left, left + wide, level))
                found.setdefault(side, []).append(point)
                break
    return found


def _pixels(point: dict[str, Any], across: Sequence[float], up: Sequence[float]) -> tuple[float, float]:
    """From the lower left corner, downwards."""
    return (
        (WIDTH - _AXIS) * math.log(point["x"] / across[0]) / math.log(across[1] / across[0]),
        -_CURVE * math.log(point["y"] / up[0]) / math.log(up[1] / up[0]),
    )


def speedups(rows: Sequence[Row]) -> list[Figure]:
    """Ratios, by what they compare: ModelOpt FP8 with the official recipe, tensor with pipeline parallelism."""
    ratios = {row: row.value for row in rows if row.result.unit == "x" and row.value is not None}
    groups = sorted(_grouped(ratios, _compared).items(), key=lambda group: -len(group[1]))
    return [_speedup(topic, {row: ratios[row] for row in found}) for topic, found in groups]


def _speedup(topic: str, ratios: Mapping[Row, float]) -> Figure:
    rows = list(ratios)
    shown = sorted(rows, key=headroom)[:MOST_ROWS] if len(rows) > MOST_ROWS else rows
    alike = len({(row.recipe, row.layout) for row in rows}) == 1
    if alike:
        topic = topic.replace(": ", f": {rows[0].recipe} {rows[0].layout} ", 1)
    points: Values = []
    intervals: Values = []
    notes = []
    for number, row in enumerate(shown):
        told = f"{amount(ratios[row], 'x')} {row.mark}"
        points.append({"row": number, "x": ratios[row], "kind": row.mark, "told": f"{row.name}: {told}"})
        if row.low is not None and row.high is not None:
            intervals.append({"row": number, "x": row.low, "x2": row.high, "told": f"{row.name}: its interval"})
        if row.promise:
            promised = f"{amount(row.promise.value, 'x')} {row.promise.mark}"
            points.append(
                {"row": number, "x": row.promise.value, "kind": row.promise.mark, "told": f"{row.name}: {promised}"}
            )
            told += f", {promised}"
        notes.append(told)
    y, names, height = named_rows([row.work if alike else row.name for row in shown], notes)
    ends = [1.0, *(p["x"] for p in points), *(i["x"] for i in intervals), *(i["x2"] for i in intervals)]
    room = (max(ends) - min(ends)) * 0.06 or 0.1
    x = axis("times better", scale={"domain": [min(ends) - room, max(ends) + room], "nice": False})
    return figure(
        topic,
        "; ".join(f"{row.work}: {note}" for row, note in zip(shown, notes, strict=True)) + _more(rows, shown),
        [names, *_ground(len(shown), 1.0, x, y), *_rows_of_points(x, y, points, intervals)],
        height=height,
    )


@dataclass(frozen=True)
class Share:
    """One kind of operator in a typical iteration."""

    kind: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Iteration:
    """A typical iteration of a predicted case. `reached` is the fraction of the speed that the GPU's physics allow at most."""

    row: Row
    phase: str
    seconds: float
    shares: tuple[Share, ...]
    reached: float | None


PHASES = ("decode", "prompt")
KINDS = ("GEMM", "attention", "all-reduce", "pipeline", "other")


def iterations(rows: Iterable[Row]) -> list[Iteration]:
    """Of every case that says what its time goes into, once for each phase; least of the physical limit first."""
    found: dict[tuple[str, str], Iteration] = {}
    for row in rows:
        for phase in PHASES:
            seconds = dict.fromkeys(KINDS, 0.0)
            for kind, part in row.operators.get(phase, {}).items():
                seconds[kind if kind in KINDS else "other"] += part
            total = sum(seconds.values())
            if total > 0:
                best = sum(row.operators.get(f"{phase} at best", {}).values())
                shares = tuple(Share(kind, part, part / total) for kind, part in seconds.items() if part)
                found.setdefault((row.id, phase), Iteration(row, phase, total, shares, best / total if best else None))
    return sorted(found.values(), key=lambda one: (PHASES.index(one.phase), one.reached or 1.0))


def operators(found: Sequence[Iteration]) -> list[Figure]:
    """A chart for each model and phase, of the cases furthest from the limit."""
    return [_shares(title, of) for title, of in _grouped(found, lambda one: f"{one.row.subject}: {one.phase}").items()]


def _shares(title: str, found: Sequence[Iteration]) -> Figure:
    shown = found[:MOST_ROWS]
    parts: Values = []
    for number, one in enumerate(shown):
        at = 0.0
        for share in one.shares:
            name = f"{share.kind} {share.share:.0%}"
            room = share.share * WIDTH / 5.5  # letters
            parts.append(
                {"row": number, "x": at * 100, "x2": (at + share.share) * 100, "middle": (at + share.share / 2) * 100,
                 "kind": share.kind,
                 "label": name if len(name) < room else f"{share.share:.0%}" if room > 5 else "",
                 "told": f"{one.row.name}, {one.phase}: {share.kind} {amount(share.seconds, 's')}, {share.share:.1%}"}
            )  # fmt: skip
            at += share.share
    y, names, height = named_rows([one.row.name for one in shown], [_reached(one) for one in shown])
    x = axis("% of the time of an iteration", scale={"domain": [0, 100], "nice": False})
    color = {
        "field": "kind", "type": "nominal", "legend": None,
        "scale": {"domain": [*KINDS], "range": [f"var(--{kind.lower()})" for kind in KINDS]},
    }  # fmt: skip
    return figure(
        f"{title} iteration, predicted",
        "; ".join(map(_told, shown)) + _more(found, shown),
        [
            names,
            layer(
                parts,
                {"type": "bar", "size": 17, "dy": 0, "stroke": "var(--paper)", "strokeWidth": 1.5, "yOffset": 6},
                {"x": x, "y": y, "x2": {"field": "x2"}, "fill": color},
            ),
            layer(
                parts,
                {"type": "text", "fill": "var(--on-operator)", "fontSize": 10, "dy": 7},
                {"x": {**x, "field": "middle"}, "y": y, "text": {"field": "label"}},
            ),
        ],
        height=height,
    )


def accuracies(rows: Sequence[Row]) -> Figure | None:
    """Differences to the reference with their intervals and margins, in points."""
    paired = [(row, row.paired) for row in rows if row.paired]
    shown = sorted(paired, key=lambda one: one[1].difference)[:MOST_ROWS]
    if not shown:
        return None
    points: Values = []
    intervals: Values = []
    margins: Values = []
    names_of = [f"{row.name}{' vs ' if row.compared else ''}{row.compared}" for row, _ in shown]
    for number, (row, found) in enumerate(shown):
        told = f"{names_of[number]}: {_points(found)}"
        points.append({"row": number, "x": found.difference, "kind": row.mark, "told": told})
        margins.append({"row": number, "x": -found.margin, "told": f"{row.name}: the margin"})
        if found.low is not None and found.high is not None:
            intervals.append({"row": number, "x": found.low, "x2": found.high, "told": told})
    y, names, height = named_rows(names_of, [f"{found.difference:+.2f}" for _, found in shown])
    x = axis("points gained (left of the red line: more than allowed)")
    return figure(
        "Accuracy against the reference",
        "; ".join(str(point["told"]) for point in points) + _more(paired, shown),
        [
            names,
            *_ground(len(shown), 0.0, x, y),
            *_rows_of_points(x, y, points, intervals),
            layer(margins, _LIMIT, {"x": x, "y": y}),
        ],
        height=height,
    )


def _rows_of_points(x: dict[str, Any], y: dict[str, Any], points: Values, intervals: Values) -> list[Layer]:
    return [
        layer(
            intervals,
            {"type": "rule", "stroke": "var(--measured)", "strokeWidth": 2, "yOffset": 6},
            {"x": x, "y": y, "x2": {"field": "x2"}},
        ),
        layer(points, {**_POINT, "yOffset": 6}, {"x": x, "y": y, **by_kind()}),
    ]


def _ground(rows: int, at: float, x: dict[str, Any], y: dict[str, Any]) -> list[Layer]:
    """A line for each row, below its name, with a stroke where nothing is gained or lost."""
    line = {"type": "rule", "stroke": "var(--line)", "yOffset": 6, "y2Offset": 6, "x": 0, "x2": "width"}
    stroke = {"type": "tick", "thickness": 1.5, "size": 14, "color": "var(--muted)", "yOffset": 6}
    return [
        {"data": {"values": [{"row": row} for row in range(rows)]}, "mark": line, "encoding": {"y": y}},
        {
            "data": {"values": [{"row": row, "x": at} for row in range(rows)]},
            "mark": stroke,
            "encoding": {"x": x, "y": y},
        },
    ]


def _grouped(found: Iterable[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def _each_case(rows: Iterable[Row]) -> Iterable[Row]:
    """Each case once, by its throughput where that is what was judged."""
    judged_first = sorted(rows, key=lambda row: row.result.metric != OUTPUT_THROUGHPUT.name)
    return {row.id: row for row in reversed(judged_first)}.values()


def _has_both(row: Row) -> bool:
    return (throughput(row) or 0.0) > 0 and row.metrics.get(TPOT_MEDIAN.name, 0.0) > 0


def _by_length(lengths: str) -> tuple[int, str]:
    first = lengths.partition("/")[0]
    return (int(first) if first.isdecimal() else 0, lengths)


def _topic(row: Row) -> str:
    metric = str(row.result.metric)
    told = "" if metric == OUTPUT_THROUGHPUT.name else f" {metric.removeprefix(f'{OUTPUT_THROUGHPUT} ')}"
    return f"{row.subject} {row.scenario or row.task}{told}"


def _compared(row: Row) -> str:
    metric, _, other = str(row.result.metric).partition(" vs ")
    told = "" if metric == OUTPUT_THROUGHPUT.name else f" ({metric})"
    return f"{row.subject}: against {other}{told}"


def headroom(row: Row) -> float:
    """How far a value is on the good side of its limit, relative to the promise."""
    gain = row.gain
    return math.inf if gain is None or row.promise is None else gain + row.promise.tolerance


def _count(found: Collection[Row]) -> str:
    missed = sum(row.result.outcome == Outcome.REGRESSION for row in found)
    return f"{missed} of {len(found)} broken" if missed else counted(len(found), "value")


def _told(one: Iteration) -> str:
    listed = ", ".join(f"{share.kind} {share.share:.0%}" for share in one.shares if share.share >= 0.005)
    limit = "" if one.reached is None else f", {one.reached:.0%} of the limit"
    return f"{one.row.name}: {amount(one.seconds, 's')}{limit}: {listed}"


def _reached(one: Iteration) -> str:
    told = amount(one.seconds, "s")
    return told if one.reached is None else f"{told}, {one.reached:.0%}"


def _points(found: Paired) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"{found.difference:+.2f}{ends}"


def _more(all_of_them: Sequence[object], shown: Sequence[object]) -> str:
    left = len(all_of_them) - len(shown)
    return f"; {counted(left, 'more row')} in the table" if left else ""
