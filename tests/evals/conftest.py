"""A tiny random model that loads in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minicpm4.evals.random_model import RandomCheckpoint
from minicpm4.evals.speed import BenchModel, BenchOptions
from minicpm4.formats.quant import QuantSpec
from tests.fixtures.tiny import tiny_config

TINY = tiny_config(
    vocab_size=96,
    tie_word_embeddings=True,
)
SPARSE = {"kernel_size": 8, "kernel_stride": 4, "block_size": 16, "window_size": 32, "topk": 2}

MakeModel = Callable[..., BenchModel]


@pytest.fixture
def make_model() -> MakeModel:
    """Load the tiny model: ``make_model(room, **BenchOptions)``."""

    def make(room: int = 256, **options: Any) -> BenchModel:
        checkpoint = RandomCheckpoint(TINY, lambda name, shape: QuantSpec(kind="int4", group_size=32))
        chosen = BenchOptions(**({"sparse": SPARSE, "threads": 2, "chunk": 32} | options))
        return BenchModel(checkpoint, TINY, chosen, room)

    return make
