"""Charts as SVG, written by hand: lines (speed over depth, loss over steps), heat maps, and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Interval", "chart", "heat_map", "intervals"]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")
_NONE, _ALL = (0x9C, 0x2F, 0x2F), (0x2F, 0x8F, 0x5B)  # ends of a heat map's colours
CELL_WIDTH, CELL_HEIGHT = 36, 16  # of a heat map at least: its number must fit
NAMES, SIDES, ROW = 260, 190, 24  # of intervals: width of names, of what stands beside them, height of a row
MARKED = 40  # points at most that get a dot
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """A figure by name, and half the width of its interval (None: it has none). ``side`` stands by it."""

    name: str
    mean: float
    half: float | None
    side: str = ""


@dataclass(frozen=True)
class _Axis:
    """Where values stand: ``share`` maps a value to 0 to 1, ``ticks`` are marked."""

    share: Callable[[float], float]
    ticks: Sequence[float]


def chart(
    title: str,
    curves: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = True,
    log_y: bool = True,
) -> str:
    """Return an SVG of ``curves`` (label -> points). On a logarithmic x axis, on which all x are marked, 0
    stands at the left edge; on a logarithmic y axis y > 0. Few points are marked with dots."""
    points = [point for curve in curves.values() for point in curve]
    x_axis = (_log_x if log_x else _linear)([x for x, _ in points])
    y_axis = (_log_y if log_y else _linear)([y for _, y in points])
    parts = [_text(WIDTH / 2, 22, title, "middle", 15), *_frame(x_axis, y_axis, x_label, y_label)]
    for number, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        where = [(_column(x_axis, x), _height(y_axis, y)) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(where) <= MARKED:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in where]
        y = TOP + 12 + 20 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 32, y, label, "start"))
    return _document(parts)


def heat_map(
    title: str,
    shares: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    y_label: str,
    low: float = 0.0,
) -> str:
    """Return an SVG of ``shares`` (rows, columns), each from 0 (dark red, as all up to ``low`` are) to 1
    (green), with numbers; NaN: an empty cell. It grows with the number of cells."""
    wide = max((WIDTH - LEFT - 40) / len(columns), CELL_WIDTH)
    high = max((HEIGHT - TOP - BOTTOM) / len(rows), CELL_HEIGHT)
    width, height = round(LEFT + wide * len(columns) + 40), round(TOP + high * len(rows) + BOTTOM)
    parts = [_text(width / 2, 22, title, "middle", 15)]
    for i, row in enumerate(shares):
        y = TOP + i * high
        parts.append(_text(LEFT - 8, y + high / 2 + 4, rows[i], "end"))
        for j, share in enumerate(row):
            if math.isnan(share):
                continue
            x = LEFT + j * wide
            box = f'x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{high - 2:.1f}"'
            parts.append(f'<rect {box} fill="{_colour(max(0.0, share - low) / (1 - low))}"/>')
            number = _text(x + wide / 2, y + high / 2 + 4, f"{share:.0%}", "middle")
            parts.append(number.replace("<text", '<text fill="white"'))
    parts += [
        _text(LEFT + (j + 0.5) * wide, height - BOTTOM + 18, name, "middle") for j, name in enumerate(columns)
    ]
    parts.append(_text((width + LEFT) / 2, height - 12, x_label, "middle"))
    parts.append(_text(8, TOP - 8, y_label, "start"))
    return _document(parts, width, height)


def intervals(title: str, groups: Mapping[str, Sequence[Interval]]) -> str:
    """Return an SVG of figures as dots with their intervals, a row each, in groups (label -> figures) with an
    axis of their own, on which 0 is marked. It grows with the number of rows."""
    parts, y = [_text(WIDTH / 2, 22, title, "middle", 15)], float(TOP)
    for label, rows in groups.items():
        if not rows:
            continue
        ends = [one.mean + sign * (one.half or 0.0) for one in rows for sign in (-1, 1)]
        axis = _linear(ends)
        bottom = y + ROW * len(rows) + 8

        def column(value: float, axis: _Axis = axis) -> float:
            return NAMES + (WIDTH - NAMES - SIDES) * axis.share(value)

        for tick in axis.ticks:
            x, colour = column(tick), "#999" if tick == 0 else "#ddd"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{bottom:.1f}" stroke="{colour}"/>'
            )
            parts.append(_text(x, bottom + 16, f"{tick:,g}", "middle"))
        for number, one in enumerate(rows):
            at = y + ROW * (number + 0.5) + 4
            x = column(one.mean)
            parts.append(_text(NAMES - 10, at + 4, _short(one.name), "end"))
            if one.half is not None:
                low, high = column(one.mean - one.half), column(one.mean + one.half)
                place = f'x1="{low:.1f}" x2="{high:.1f}" y1="{at:.1f}" y2="{at:.1f}"'
                parts.append(f'<line {place} stroke="{COLOURS[0]}" stroke-width="3"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="4.5" fill="{COLOURS[0]}"/>')
            parts.append(_text(WIDTH - SIDES + 10, at + 4, one.side, "start"))
        parts.append(_text((NAMES + WIDTH - SIDES) / 2, bottom + 34, label, "middle"))
        y = bottom + 52
    return _document(parts, WIDTH, round(y))


def _short(name: str, most: int = 34) -> str:
    """As much as there is room for: the beginning, and the end, which tells apart."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _colour(share: float) -> str:
    mixed = [round(a + (b - a) * share) for a, b in zip(_NONE, _ALL, strict=True)]
    return "#" + "".join(f"{level:02x}" for level in mixed)


def _document(parts: Sequence[str], width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _log_y(values: Sequence[float]) -> _Axis:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = high if high > low else low + 1
    marks = [digit * 10.0**exponent for exponent in range(low, high + 1) for digit in (1, 2, 5)]
    ticks = [mark for mark in marks if low <= math.log10(mark) <= high]
    return _Axis(lambda y: (math.log10(y) - low) / (high - low), ticks)


def _log_x(values: Sequence[float]) -> _Axis:
    xs = sorted(set(values))
    positive = [x for x in xs if x > 0]
    if not positive or len(xs) == 1:
        return _Axis(lambda x: 0.0, xs)
    # Zero has no logarithm: it gets a step of its own before the smallest depth.
    start = math.log2(positive[0]) - (1 if xs[0] <= 0 else 0)
    span = math.log2(positive[-1]) - start
    return _Axis(lambda x: (math.log2(x) - start) / span if x > 0 and span else 0.0, xs)


def _linear(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    raw = (high - low or abs(high) or 1.0) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first, last = math.floor(low / size), max(math.ceil(high / size), math.floor(low / size) + 1)
    return _Axis(
        lambda v: (v / size - first) / (last - first), [round(i * size, 12) for i in range(first, last + 1)]
    )


def _column(axis: _Axis, x: float) -> float:
    return LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * axis.share(x)


def _height(axis: _Axis, y: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.share(y)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    size = f'width="{right - LEFT}" height="{bottom - TOP}"'
    parts = [f'<rect x="{LEFT}" y="{TOP}" {size} fill="none" stroke="#999"/>']
    for value in y_axis.ticks:
        y = _height(y_axis, value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:,g}", "end"))
    free = 0.0  # where the last label ends
    for value in x_axis.ticks:
        label, x = f"{value:,g}" if abs(value) >= 1 else f"{value:.3g}", _column(x_axis, value)
        half = 3.6 * len(label)
        if x - half >= free:
            parts.append(_text(x, bottom + 18, label, "middle"))
            free = x + half
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, x_label, "middle"))
    parts.append(_text(8, TOP - 8, y_label, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {where}>{escape(text)}</text>"
