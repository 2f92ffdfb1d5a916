"""Logits have the same bits however the work is cut: chunks, batches, cached pages, threads. Of real widths:
test_same_bits.py has the rows of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.scoring import Logits
from minicpm4.kernels.cpu import isa_levels
from tests.engine.conftest import require_smollm
from tests.fixtures.random_checkpoint import make_checkpoint

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "block_size": 64,
    "window_size": 64,
    "topk": 2,
    "dense_len": 0,
}
CHUNKS = (7, 1, 64, 33, 512)
LEVELS = [level for level in isa_levels() if level != "amx"]
CACHES = {
    "dense": {"sparse": None},
    "sparse": {"sparse": SPARSE},
    "lse": {"sparse": SPARSE | {"lse_approx": True}},
    "int8": {"sparse": SPARSE, "kv": "int8"},
}


def texts(vocabulary: int, length: int) -> list[list[int]]:
    """The one that is looked at, and strangers of other lengths."""
    rng = np.random.default_rng(3)
    return [rng.integers(5, vocabulary, size).tolist() for size in (length, 13, length // 2, length - 5)]


def logits(model: Any, asked: list[list[int]], **options: Any) -> list[NDArray[np.int32]]:
    """Of each text, as bits."""
    with LLM(model, **({"max_batch": 4, "threads": 1, "context": 1024} | options)) as llm:
        vocabulary = llm.driver.limits.vocab_size
        return [
            found.view(np.int32) for found in llm._scored([Logits(ids, vocabulary) for ids in asked], None)
        ]


def continued(model: Any, ids: list[int], cached: bool, **options: Any) -> list[Any]:
    """Tokens and log probabilities of an answer; its prompt, but for the end, may lie in pages already."""
    with LLM(
        model, prefix_cache=cached, **({"max_batch": 4, "threads": 2, "context": 1024} | options)
    ) as llm:
        if cached:
            llm.generate(ids[:-3], SamplingParams(temperature=0.0, max_tokens=1))
        out = llm.generate(ids, SamplingParams(temperature=0.0, max_tokens=6, logprobs=20))
        assert (out.metrics.cached_tokens > 0) == cached
        return [(token.token_id, token.logprob, token.top) for token in out.logprobs or []]


def check(model: Any, asked: list[list[int]], **options: Any) -> None:
    whole = logits(model, asked[:1], chunk=512, **options)[0]
    for number, chunk in enumerate(CHUNKS):
        got = logits(model, asked[:1], chunk=chunk, threads=1 + number % 2, **options)[0]
        np.testing.assert_array_equal(got, whole, f"chunks of {chunk}")
    together = logits(model, asked, chunk=33, threads=2, **options)
    np.testing.assert_array_equal(together[0], whole, "among strangers")
    assert continued(model, asked[0], True, chunk=33, **options) == continued(
        model, asked[0], False, **options
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of MiniCPM4-0.5B's widths."""
    return make_checkpoint(
        tmp_path_factory.mktemp("models") / "wide",
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=64,
        dtype="bfloat16",
    )


@pytest.mark.parametrize(("weights", "cache"), [("auto", "dense"), ("int4", "sparse")])
@pytest.mark.parametrize("level", LEVELS)
def test_logits_do_not_hang_on_cuts(wide: Path, level: str, weights: str, cache: str) -> None:
    check(wide, texts(320, 70 if cache == "dense" else 200), isa=level, weights=weights, **CACHES[cache])


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES)
def test_those_of_a_real_model_do_not(cache: str) -> None:
    require_smollm()
    ids = np.load(FIXTURES / "smollm2_reference.npz")["text_ids"].tolist()
    check("smollm2-135m-instruct", [ids[:300], *texts(40000, 300)[1:]], **CACHES[cache])
