"""A plot as SVG: share of losses found, by size of the loss, a line for each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 860, 430, 60, 40, 480, 330
COLORS = ("#c1121f", "#1d3557", "#2a9d8f", "#e9a100", "#7b2cbf", "#588157", "#0096c7", "#bc6c25", "#6c757d", "#d63384")


def draw(title: str, losses: Sequence[float], curves: Mapping[str, tuple[float, Sequence[float]]]) -> str:
    """curves: rule -> share of clean releases blocked, and of losses found at each of `losses`."""
    most = max(losses)

    def x(loss: float) -> float:
        return LEFT + PLOT_WIDTH * loss / most

    def y(share: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{HEIGHT - 15}" text-anchor="middle">true loss, %</text>',
    ]
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<path d="M{LEFT} {at}h{PLOT_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{tenth * 10} %</text>')
    for loss in losses:
        parts.append(f'<text x="{x(loss)}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle">{loss * 100:g}</text>')
    for number, (name, (blocked, found)) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{x(loss):.1f},{y(share):.1f}" for loss, share in zip(losses, found, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{3 if not number else 1.5}"/>'
        )
        line, text = TOP + 12 + 24 * number, f"{name}: blocks {blocked * 100:.1f} % of clean releases"
        parts.append(f'<path d="M{LEFT + PLOT_WIDTH + 15} {line - 4}h20" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{LEFT + PLOT_WIDTH + 42}" y="{line}" font-size="11">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])
