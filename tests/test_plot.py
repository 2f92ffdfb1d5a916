"""Charts are well-formed SVG with every point in its place."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from minicpm4.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Interval, chart, heat_map, intervals

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]


def test_points_lie_on_logarithmic_axes() -> None:
    found = circles(chart("t", {"a": [(0, 100), (2048, 100), (4096, 10), (8192, 1)]}, "x", "y"))
    xs, ys = zip(*found, strict=True)
    assert xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.2)
    assert ys[0] == ys[1] and ys[2] - ys[1] == pytest.approx(ys[3] - ys[2], abs=0.2)
    assert all(LEFT <= x <= WIDTH - RIGHT for x in xs)
    assert all(TOP <= y <= HEIGHT - BOTTOM for y in ys)


@pytest.mark.parametrize("curve", [[(0.0, 5.0)], [(64.0, 1.0)], [(0.0, 3.0), (9.0, 3.0)]])
def test_small_charts_are_drawn(curve: list[tuple[float, float]]) -> None:
    assert len(circles(chart("t", {"a": curve}, "x", "y"))) == len(curve)


def test_labels_are_escaped() -> None:
    svg = chart('<&"', {"<script>": [(0, 1)]}, "x", "y")
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert '<&"' in texts and "<script>" in texts and "<script>" not in svg


def test_heat_maps_grow_with_their_cells_and_leave_empty_ones_out() -> None:
    def parts(rows: int, columns: int, low: float = 0.0) -> tuple[list[str], int]:
        shares = [[1.0] * columns for _ in range(rows - 1)] + [[0.5, *[math.nan] * (columns - 1)]]
        names = [[str(i) for i in range(count)] for count in (rows, columns)]
        svg = heat_map("t", shares, rows=names[0], columns=names[1], x_label="x", y_label="y", low=low)
        root = ElementTree.fromstring(svg)
        return [r.attrib["fill"] for r in root.iter(f"{SVG}rect")][1:], int(root.attrib["height"])

    small, usual = parts(2, 3)
    large, high = parts(40, 30)
    assert (len(small), usual) == (4, HEIGHT) and (len(large), high) == (39 * 30 + 1, 40 * 16 + TOP + BOTTOM)
    assert len(set(small)) == 2 and parts(2, 3, low=0.5)[0][-1] == "#9c2f2f"


def test_intervals_have_a_dot_each_and_a_line_where_they_are_wide() -> None:
    rows = [Interval("<a>", 10, 5, "side"), Interval("b", 20, None), Interval("c", 30, 0.0)]
    svg = intervals("t", {"one": rows, "none": [], "two": [Interval("d", -1.0, 2.0)]})
    xs = [x for x, _ in circles(svg)]
    assert len(xs) == 4 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    lines = [one.attrib for one in ElementTree.fromstring(svg).iter(f"{SVG}line")]
    (wide, thin, other) = [one for one in lines if one.get("stroke-width") == "3"]
    assert float(wide["x1"]) + float(wide["x2"]) == pytest.approx(2 * xs[0], abs=0.2)
    assert thin["x1"] == thin["x2"] and other["x1"] != other["x2"]
