"""Line charts as SVG, written by hand: tokens per second over depth, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["chart"]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")
Curve = Sequence[tuple[float, float]]


def chart(title: str, curves: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """Return an SVG of ``curves`` (label -> points (x >= 0, y > 0)); x = 0 stands at the left edge."""
    points = [point for curve in curves.values() for point in curve]
    xs = sorted({x for x, _ in points})
    low, high = _decades([y for _, y in points])
    column = {x: _place(x, xs) for x in xs}
    parts = [_text(WIDTH / 2, 22, title, "middle", 15), *_axes(column, low, high, x_label, y_label)]
    for number, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        where = [(column[x], _height(y, low, high)) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in where]
        y = TOP + 12 + 20 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 32, y, label, "start"))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """The whole powers of ten around ``values``, as exponents."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, high if high > low else low + 1


def _place(x: float, xs: Sequence[float]) -> float:
    inner = WIDTH - LEFT - RIGHT
    positive = [value for value in xs if value > 0]
    if x <= 0 or len(xs) == 1:
        return LEFT + 12.0
    # Zero has no logarithm: it gets a step of its own before the smallest depth.
    start = math.log2(positive[0]) - (1 if xs[0] <= 0 else 0)
    span = math.log2(positive[-1]) - start
    return LEFT + 12 + (inner - 24) * ((math.log2(x) - start) / span if span else 1.0)


def _height(y: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(y) - low) / (high - low)


def _axes(column: Mapping[float, float], low: float, high: float, x_label: str, y_label: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    size = f'width="{right - LEFT}" height="{bottom - TOP}"'
    parts = [f'<rect x="{LEFT}" y="{TOP}" {size} fill="none" stroke="#999"/>']
    for exponent in range(int(low), int(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**exponent
            if low <= math.log10(value) <= high:
                y = _height(value, low, high)
                parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
                parts.append(_text(LEFT - 8, y + 4, f"{value:,g}", "end"))
    parts += [_text(x, bottom + 18, f"{value:,g}", "middle") for value, x in column.items()]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, x_label, "middle"))
    parts.append(_text(LEFT, TOP - 8, y_label, "middle"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {where}>{escape(text)}</text>"
