"""How the CPU's kernels multiply x by weights: the map that the extension itself reads (cpp/linear/ways.hpp).

It knows the levels of all processors, whatever this machine has. `minicpm4 doctor --ways` prints it, tests go
through it, and the table in docs/architecture.md is written from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4 import _cpu

HEADINGS = ("level", "weights", "layout", "rows of x", "method")


@dataclass(frozen=True, slots=True)
class Way:
    """One line of the map: weights of ``formats`` in ``layout`` ("rows", "panels", "any") by ``first`` to
    ``last`` (None: any number) rows of x are multiplied by ``method``.

    ``narrow``: only where activations may be rounded to 8 bits.
    """

    formats: tuple[str, ...]
    layout: str
    first: int
    last: int | None
    narrow: bool
    method: str

    @property
    def rows(self) -> str:
        return f"{self.first} or more" if self.last is None else f"{self.first} to {self.last}"

    def cells(self) -> tuple[str, ...]:
        """The way as text, under ``HEADINGS`` but the first."""
        method = self.method + (" (8-bit activations)" if self.narrow else "")
        return ", ".join(self.formats), self.layout, self.rows, method


def ways(level: str) -> list[Way]:
    """The map of a level: the first way that fits is taken. Raises ValueError for an unknown level."""
    return [Way(tuple(row[0]), *row[1:]) for row in _cpu.ways(level)]


def levels() -> list[list[str]]:
    """All levels, those together that multiply alike."""
    alike: list[list[str]] = []
    for level in _cpu.all_levels():
        for group in alike:
            if ways(group[0]) == ways(level):
                group.append(level)
                break
        else:
            alike.append([level])
    return alike


def markdown() -> str:
    """The whole map, and what its methods are, as two tables."""
    lines = [_row(HEADINGS), _row(["---"] * len(HEADINGS))]
    for alike in levels():
        names = ", ".join(f"`{name}`" for name in alike)
        lines += [_row((names, *way.cells())) for way in ways(alike[0])]
    lines += ["", _row(("method", "in `cpp/linear/`", "what it does")), _row(["---"] * 3)]
    lines += [_row((name, f"`{file}`", meaning)) for name, file, meaning in _cpu.methods()]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
