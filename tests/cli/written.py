"""Models that `minicpm4 convert` wrote, read again by what does not depend on a processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minicpm4 import LLM
from minicpm4.cli import run

IDS = [256, 5, 9, 40, 41, 200, 7, 7, 90]


def convert(layout: str, model: Path, out: Path, *more: str) -> int:
    return run(["convert", str(model), str(out), "--to", layout, *more])


def logits(model: Path) -> np.ndarray:
    """Of IDS (9, vocab), in float32."""
    with LLM(str(model), kv="float32", backend="ref") as llm:
        return llm.logits(IDS)
