"""Finding needles: a fact hidden at every depth of texts of every length, asked for at the end.

The prompt ends where the answer's value begins; the model goes on greedily, and counts as right if it writes
the value and then no further digit. The same makers of documents serve training (``data/needles.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minicpm4 import LLM, SamplingParams
from minicpm4.data.needles import NeedleDocument, NeedleMaker
from minicpm4.plot import heat_map

__all__ = ["Cell", "as_json", "find", "svg"]

Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """``found`` of ``asked`` needles at ``depth`` (0 to 1) of texts of ``length`` tokens; ``read``: blocks
    read / blocks visible, over all tokens of prompts and answers."""

    length: int
    depth: float
    found: int
    asked: int
    read: float

    @property
    def share(self) -> float:
        """Of the needles that were found."""
        return self.found / self.asked


def find(
    llm: LLM,
    maker: NeedleMaker,
    lengths: Sequence[int],
    depths: Sequence[float],
    each: int,
    tick: Tick = lambda: None,
) -> list[Cell]:
    """``each`` needles in every cell of the grid. Raises ConfigError, RequestError where a text is too
    long."""
    outcomes: dict[tuple[int, float], list[tuple[bool, float]]] = {}
    for length, depth, document in maker.grid(lengths, depths, each):
        outcomes.setdefault((length, depth), []).append(_ask(llm, document))
        tick()
    return [
        Cell(
            length=length,
            depth=depth,
            found=sum(right for right, _ in cell),
            asked=len(cell),
            read=sum(read for _, read in cell) / len(cell),
        )
        for (length, depth), cell in outcomes.items()
    ]


def _ask(llm: LLM, document: NeedleDocument) -> tuple[bool, float]:
    value = document.asked[0].value
    prompt = document.tokens[: document.prompt].tolist()
    out = llm.generate(prompt, SamplingParams(max_tokens=len(value) + 2, temperature=0.0, ignore_eos=True))
    answer = out.text.lstrip()
    right = answer.startswith(value) and not answer[len(value) : len(value) + 1].isdigit()
    return right, out.metrics.blocks_read_share


def as_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every cell as plain values."""
    return [
        {
            "length": c.length,
            "depth": c.depth,
            "found": c.found,
            "asked": c.asked,
            "blocks_read": round(c.read, 4),
        }
        for c in cells
    ]


def svg(title: str, cells: Sequence[Cell]) -> str:
    """The grid as a heat map: lengths across, depths down."""
    lengths, depths = sorted({c.length for c in cells}), sorted({c.depth for c in cells})
    by_place = {(c.depth, c.length): c.share for c in cells}
    return heat_map(
        title,
        [[by_place[depth, length] for length in lengths] for depth in depths],
        rows=[f"{depth:.0%}" for depth in depths],
        columns=[f"{length:,}" for length in lengths],
        x_label="length of the text, tokens",
        y_label="depth",
    )
