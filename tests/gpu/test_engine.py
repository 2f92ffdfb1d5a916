"""The whole engine on the GPU's table: the same tokens as the truth, captured steps and all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import Minicpm4Error, UnsupportedError
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.stored_prefix import store_prefix

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SPARSE = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "init_blocks": 1,
    "block_size": 16,
    "window_size": 32,
    "topk": 2,
    "dense_len": -1,
}
GREEDY = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("kind", ["minicpm", "qwen3"])
def test_same_tokens_as_the_truth(tmp_path: Path, kind: str) -> None:
    """Three sequences of unequal length: one row of the captured step stands for nobody."""
    sparse = SPARSE if kind == "minicpm" else None
    path = make_checkpoint(tmp_path / kind, model_type=kind, num_hidden_layers=1, sparse_config=sparse)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, n).tolist() for n in (45, 33, 1)]
    with LLM(path, backend="ref", kv="float32", context=128, max_batch=4) as truth:
        logits = truth.logits(prompts[0])
        expected = [out.token_ids for out in truth.generate(prompts, GREEDY)]
    with LLM(path, backend="gpu", kv="float32", context=128, max_batch=4) as llm:
        assert "gpu: Triton" in llm.description
        found = llm.logits(prompts[0])
        assert np.linalg.norm(found - logits) < 2e-2 * np.linalg.norm(logits)
        assert [out.token_ids for out in llm.generate(prompts, GREEDY)] == expected
        scored = llm.nll(prompts[1])
    with LLM(path, backend="ref", kv="float32", context=128) as truth:
        np.testing.assert_allclose(scored, truth.nll(prompts[1]), atol=0.05)


def test_requests_attend_in_their_own_ways_side_by_side(tmp_path: Path) -> None:
    """A captured step attends as the engine does; the others run beside it, texts that are scored too."""
    settings = {**SPARSE, "dense_len": 48}
    path = make_checkpoint(tmp_path, model_type="minicpm", num_hidden_layers=1, sparse_config=settings)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, 50).tolist() for _ in range(3)]
    ways = [replace(GREEDY, attention=way) for way in (None, "dense", "sparse")]
    found = []
    for backend in ("ref", "gpu"):
        with LLM(path, backend=backend, kv="float32", context=128, max_batch=4) as llm:
            outputs = llm.generate(prompts, ways)
            found.append([out.token_ids for out in outputs])
            assert [out.metrics.attention for out in outputs] == ["sparse", "dense", "sparse"]
    assert found[0] == found[1]


@pytest.mark.parametrize(("kind", "weights"), [("minicpm", "auto"), ("qwen3", "int4")])
def test_weights_are_replaced_where_they_lie(tmp_path: Path, kind: str, weights: str) -> None:
    """What the captured step reads stays at its addresses."""
    shape = {"model_type": kind, "num_hidden_layers": 1}
    paths = [make_checkpoint(tmp_path / str(seed), seed=seed, **shape) for seed in (1, 2)]
    options = {"backend": "gpu", "weights": weights, "kv": "float32", "context": 64, "max_batch": 1}
    prompt = list(range(4, 16))
    with LLM(paths[1], **options) as fresh:
        expected, scores = fresh.generate(prompt, GREEDY).token_ids, fresh.logits(prompt)
    with LLM(paths[0], **options) as llm:
        before = llm.generate(prompt, GREEDY).token_ids
        llm.refill(paths[1])
        assert llm.generate(prompt, GREEDY).token_ids == expected != before
        np.testing.assert_array_equal(llm.logits(prompt), scores)


def test_stored_keys_and_values_are_read(tmp_path: Path) -> None:
    """By rows behind the prefix, in it and beside it; no captured step writes there."""
    path = make_checkpoint(tmp_path, num_hidden_layers=1, sparse_config=SPARSE)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, 40).tolist()
    plain = make_checkpoint(tmp_path / "plain", num_hidden_layers=1, sparse_config=SPARSE)
    store_prefix(path, ids[:20])
    prompts, found = [ids, ids[:8], [*ids[:3], 7, 8]], []
    for backend, model in (("ref", path), ("gpu", path), ("ref", plain)):
        with LLM(model, backend=backend, kv="float32", context=128, max_batch=4) as llm:
            found.append((llm.logits(ids), [out.token_ids for out in llm.generate(prompts, GREEDY)]))
    truth, gpu, other = found
    assert np.linalg.norm(gpu[0] - truth[0]) < 2e-2 * np.linalg.norm(truth[0])
    assert np.linalg.norm(other[0] - truth[0]) > 0.1 * np.linalg.norm(truth[0])
    assert gpu[1] == truth[1]


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, num_hidden_layers=1)
    with pytest.raises(UnsupportedError, match=r"pages of int8.*kv='bf16'"):
        inspect(path, EngineOptions(backend="gpu", kv="int8", context=64))  # before weights are read
    with pytest.raises(Minicpm4Error, match="activations = 'int8'"):
        LLM(path, backend="gpu", activations="int8", context=64)
