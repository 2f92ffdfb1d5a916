"""An LLM whose weights are replaced is the LLM that loading them would give."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, AsyncLLM, SamplingParams
from minicpm4.errors import CheckpointError, UnsupportedError
from minicpm4.formats import PackedTensor
from minicpm4.model.source import open_model
from minicpm4.testing import ScriptedEngine
from tests.engine.conftest import SPARSE
from tests.fixtures.random_checkpoint import make_checkpoint

PROMPT = list(range(4, 160))
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
OPTIONS: list[dict[str, Any]] = [
    {"backend": "ref", "kv": "float32"},
    {"threads": 2},
    {"threads": 2, "weights": "int4", "kv": "int8", "sparse": SPARSE, "attention": "sparse"},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets of weights of one model."""
    place = tmp_path_factory.mktemp("models")
    first, second = (make_checkpoint(place / str(seed), seed=seed, dtype="bfloat16") for seed in (1, 2))
    return first, second


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_answers_as_a_fresh_one(pair: tuple[Path, Path], options: dict[str, Any]) -> None:
    first, second = pair
    with LLM(second, **options) as fresh:
        expected, scores = fresh.generate(PROMPT, GREEDY).token_ids, fresh.logits(PROMPT)
    with LLM(first, **options) as llm:
        before = llm.generate(PROMPT, GREEDY).token_ids
        llm.refill(second)
        out = llm.generate(PROMPT, GREEDY)
        assert out.token_ids == expected != before
        assert out.metrics.cached_tokens == 0  # what the old weights had read of the prompt
        np.testing.assert_array_equal(llm.logits(PROMPT), scores)
        assert llm.generate(PROMPT, GREEDY).metrics.cached_tokens > 0
        llm.refill(str(first))
        assert llm.generate(PROMPT, GREEDY).token_ids == before


def test_requests_under_way_go_on_with_the_new_weights(pair: tuple[Path, Path]) -> None:
    first, second = pair
    with LLM(first, threads=2) as llm:
        stream = llm.stream(PROMPT, SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
        old = [next(stream).token_ids[0] for _ in range(4)]
        llm.refill(second)
        new = [piece.token_ids[0] for piece in stream if piece.token_ids]
    with LLM(second, threads=2) as fresh:
        rest = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
        assert new == fresh.generate(PROMPT + old, rest).token_ids


def test_half_filled_it_refuses_until_it_is_filled(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    with LLM(first, threads=2) as llm:
        before = llm.generate(PROMPT, GREEDY).token_ids
        checkpoint = open_model(second).checkpoint
        load, seen = checkpoint.load, Counter[str]()

        def failing(name: str) -> PackedTensor:
            seen[name] += 1  # once to see whether it fits, then to put it in place
            if ".mlp." in name and seen[name] == 2:
                raise OSError("the disk is gone")
            return load(name)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "load", failing)
            with pytest.raises(OSError, match="the disk is gone"):
                llm.refill(checkpoint)
        for ask in (llm.generate, llm.logits):
            with pytest.raises(CheckpointError, match="failed halfway"):
                ask(PROMPT)
        llm.refill(first)
        assert llm.generate(PROMPT, GREEDY).token_ids == before


def test_an_async_one_is_filled_beside_its_loop(pair: tuple[Path, Path]) -> None:
    async def answers() -> list[list[int]]:
        found = []
        async with await AsyncLLM.load(pair[0], threads=2) as llm:
            for model in pair:
                await llm.refill(model)
                found.append((await llm.generate(PROMPT, GREEDY)).token_ids)
        return found

    with LLM(pair[0], threads=2) as first, LLM(pair[1], threads=2) as second:
        expected = [llm.generate(PROMPT, GREEDY).token_ids for llm in (first, second)]
    assert asyncio.run(answers()) == expected


def test_another_runtimes_weights_are_its_own(pair: tuple[Path, Path]) -> None:
    engine = ScriptedEngine()
    with (
        LLM.over(engine, engine.text, name="scripted") as llm,
        pytest.raises(UnsupportedError, match="not ours"),
    ):
        llm.refill(pair[0])


def test_another_model_changes_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=1)
    with LLM(pair[0], threads=2) as llm:
        before = llm.generate(PROMPT, GREEDY).token_ids
        with pytest.raises(CheckpointError, match="num_hidden_layers is 1, not 2"):
            llm.refill(other)
        assert llm.generate(PROMPT, GREEDY).token_ids == before
