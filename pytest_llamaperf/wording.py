"""Numbers as people read them. The only place that scales a unit or rounds."""

from __future__ import annotations

from pathlib import Path


def amount(value: float, unit: str) -> str:
    """A value in base units with the unit that reads best: 463.1 tok/s, 20.1 ms, 47.7 GiB, 1.16x."""
    match unit:
        case "x":
            return f"{value:.2f}x"
        case "s" if abs(value) < 0.9995:  # what rounds to a second is written as one
            return f"{value * 1e3:#.3g}".rstrip(".") + " ms"
        case "B":
            return f"{value / 2**30:.1f} GiB"
        case "fraction":
            return f"{value * 100:.2f} %"
        case "1":
            return f"{value:.4g}"
        case _:
            return f"{_digits(value)} {unit}"


def change(value: float, reference: float) -> str:
    """The relative difference to a reference: +0.6 %, -22.5 %; from a reference of zero there is none."""
    if not reference:
        return "+0.0 %" if value == reference else "from zero"
    percent = round((value / reference - 1) * 100, 1) + 0.0  # never -0.0
    return f"{percent:+.1f} %"


def interval(low: float | None, high: float | None, unit: str) -> str:
    """` (455.0 tok/s to 471.2 tok/s)`, or nothing where there is no interval."""
    return "" if low is None or high is None else f" ({amount(low, unit)} to {amount(high, unit)})"


def counted(number: int, noun: str) -> str:
    """1 case, 2 cases."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """On one line, with escapes in the place of what would move a terminal's cursor, or cannot be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown_path(path: Path) -> str:
    """A path as people type it, from where they stand."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _digits(value: float) -> str:
    """Three significant digits or more, and never a decimal that nobody could measure."""
    match abs(value):
        case magnitude if magnitude >= 10000:
            return f"{value:,.0f}"
        case magnitude if magnitude >= 100:
            return f"{value:,.1f}"
        case magnitude if magnitude >= 1 or not magnitude:
            return f"{value:.2f}"
        case _:
            return f"{value:#.3g}"
