"""Charts as SVG in the page, by Vega-Lite: text stays text, colours are the page's, so that it can be dark, and printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.report.rows import Mark

WIDTH = 344  # pixels: what a telephone shows without making it smaller
_RIGHT = 6
_ROW = 38  # pixels, of a name and what is drawn below it
_LETTERS = 60  # that fit into a line of text
_SVG = "http://www.w3.org/2000/svg"

# Shape and filling tell sources apart where colours cannot.
_SHAPES = {Mark.MEASURED: "circle", Mark.PREDICTED: "triangle-up", Mark.PUBLISHED: "diamond", Mark.PROMISED: "square"}
_FILLS = {mark: f"var(--{mark})" if mark is Mark.MEASURED else "var(--paper)" for mark in Mark}

_CONFIG = {
    # Widths of text are computed with Liberation Sans, which has those of Arial and Helvetica.
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)", "titleColor": "var(--muted)", "gridColor": "var(--line)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "labelFontSize": 11, "titleFontSize": 11,
        "titleFontWeight": "normal", "tickCount": 5,
    },
    "text": {"fill": "var(--ink)", "fontSize": 11},
    "rule": {"stroke": "var(--muted)"},
}  # fmt: skip

Values = list[dict[str, Any]]
Layer = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """`told` is what the picture says, for who cannot see it; the numbers stand in a table of the page."""

    title: str
    told: str
    svg: str


def require() -> None:
    """Raises UsageError where the packages that make pages are not installed."""
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as problem:
        raise UsageError(
            f"a page needs {problem.name}, which is not installed: pip install 'pytest-llamaperf[report]'"
        ) from None


def figure(
    title: str, told: str, layers: Sequence[Layer], *, height: int | Mapping[str, int], left: int = 6, bottom: int = 36
) -> Figure:
    """Of layers of Vega-Lite, `left` pixels from the edge. Nothing is fetched to draw it."""
    import vl_convert

    spec = {
        "width": WIDTH - left - _RIGHT,
        "height": height,
        "autosize": "none",  # room for axes is known, and to find it takes a third of the time
        "padding": {"left": left, "right": _RIGHT, "top": 4, "bottom": bottom},
        "config": _CONFIG,
        "layer": [*layers],
    }
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return Figure(title, told, _in_page(drawn, f"{title}. {told}"))


def layer(values: Values, mark: dict[str, Any], encoding: dict[str, Any]) -> Layer:
    described = {"description": {"field": "told"}} if values and "told" in values[0] else {}
    return {"data": {"values": values}, "mark": mark, "encoding": {**encoding, **described}}


def axis(
    title: str, field: str = "x", *, scale: dict[str, Any] | None = None, ticks: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "field": field, "type": "quantitative", "title": title,
        "scale": scale or {"nice": True, "zero": False}, "axis": {"title": title, "grid": False, **(ticks or {})},
    }  # fmt: skip


def by_kind() -> dict[str, Any]:
    """Encodings of the field `kind`, a Mark: measured, predicted, published and promised look different."""
    return {
        name: {"field": "kind", "type": "nominal", "legend": None, "scale": {"domain": [*Mark], "range": [*values]}}
        for name, values in {
            "shape": _SHAPES.values(),
            "stroke": [f"var(--{mark})" for mark in Mark],
            "fill": _FILLS.values(),
        }.items()
    }


def named_rows(names: Sequence[str], notes: Sequence[str]) -> tuple[dict[str, Any], Layer, dict[str, int]]:
    """(encoding of y, layer of names, height) of a chart with a line of text above what is drawn for each row."""
    y = {"field": "row", "type": "ordinal", "axis": None, "scale": {"domain": [*range(len(names))]}}
    told = [
        {"row": n, "name": _within(name, _LETTERS - len(note)), "note": note}
        for n, (name, note) in enumerate(zip(names, notes, strict=True))
    ]
    text = {"type": "text", "baseline": "middle", "dy": -11}
    names_layer = {
        "data": {"values": told},
        "layer": [
            {
                "mark": {**text, "align": "left"},
                "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "name"}},
            },
            {
                "mark": {**text, "align": "right", "fill": "var(--muted)"},
                "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "note"}},
            },
        ],
    }
    return y, names_layer, {"step": _ROW}


def _within(name: str, letters: int) -> str:
    """Vega could do that by measuring every piece of every text, in half of all the time it takes."""
    return name if len(name) <= letters else f"{name[: max(letters - 1, 1)]}…"


def log_scale(values: Sequence[float]) -> dict[str, Any]:
    """With room for names beside the outermost points."""
    return {"type": "log", "domain": [min(values) / 1.4, max(values) * 1.9], "nice": False}


def log_axis(scale: dict[str, Any]) -> dict[str, Any]:
    return {"values": _round_ticks(*scale["domain"]), "format": "~g", "grid": True}


def _round_ticks(low: float, high: float) -> list[float]:
    """Round ones, of which there are not many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tried = [
        [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,))
    ]
    return next((ticks for ticks in tried if len(ticks) <= 6), tried[-1])


def _in_page(drawn: str, told: str) -> str:
    """An image with a text, of which each mark has its own text under the pointer."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(drawn)
    for element in list(root.iter()):
        label = element.attrib.pop("aria-label", None)
        is_mark = element.attrib.get("role") == "graphics-symbol" and not len(element)
        for name in [name for name in element.attrib if name.startswith("aria-") or name in ("role", "class")]:
            del element.attrib[name]
        if is_mark and label:
            ElementTree.SubElement(element, f"{{{_SVG}}}title").text = label
    root.attrib |= {"role": "img", "aria-label": told}
    return ElementTree.tostring(root, encoding="unicode")
