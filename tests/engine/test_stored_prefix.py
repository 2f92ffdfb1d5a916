"""Stored keys and values are in the cache where a text begins with their tokens, however work is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.executors import Executor
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.errors import UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.registry import resolve
from minicpm4.model.stored_prefix import FILE, StoredPrefix
from tests.engine.test_any_cut import CACHES, check
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.stored_prefix import store_prefix

IDS = np.random.default_rng(3).integers(5, 300, 210).tolist()
COUNT = 45  # tokens of the prefix: kernels of 32 tokens begin in it and end behind it
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", num_hidden_layers=2)


def logits(model: Path, ids: list[int], **options: Any) -> np.ndarray:
    with LLM(model, **({"backend": "ref", "kv": "float32"} | options)) as llm:
        return llm.logits(ids)


@pytest.mark.parametrize("cache", CACHES)
def test_logits_do_not_hang_on_cuts(model: Path, cache: str) -> None:
    """Chunks that end in the prefix, strangers that leave it on their way, pages that are cached."""
    store_prefix(model, IDS[:COUNT])
    strangers = [[*IDS[:20], *IDS[100:140]], IDS[1:90], IDS[:COUNT]]
    check(model, [IDS, *strangers], **CACHES[cache])


@pytest.mark.parametrize("ops", [RefOps(), resolve("cpu", threads=1)], ids=["ref", "cpu"])
def test_it_is_what_later_rows_read(model: Path, ops: OpTable) -> None:
    """Rows behind the prefix are those of a runner that knows none, over pages with these keys and values."""
    plain = load_model(model, ops=ops).weights
    stored = store_prefix(model, IDS[:COUNT])
    found = []
    for weights in (load_model(model, ops=ops).weights, plain):
        pages: Any = {"context": 256, "num_pages": 2, "page_size": 64, "kv": "float32", "sparse": None}
        executor = Executor(ops, weights.config, **pages)
        runner = executor.runner(weights, None, max_rows=96, max_sequences=1)
        sequence = Sequence(0, IDS[:80], 128, pages=[0, 1])
        if weights is plain:
            fill(executor, stored)
            sequence.computed = COUNT
        result = runner.execute(StepPlan([Span.next(sequence, 80)]))
        assert result.logits.shape[0] == 1
        found.append(result.logits.copy())
    np.testing.assert_array_equal(*found)


def fill(executor: Executor, stored: StoredPrefix) -> None:
    for index in range(2):
        layer, own = executor.pool.layer(index), stored.layer(index)
        layer.keys[0, :, :, :COUNT] = own.keys.transpose(1, 2, 0)
        layer.values[0, :, :COUNT] = own.values.transpose(1, 0, 2)


def test_a_text_that_begins_otherwise_is_computed_as_always(model: Path) -> None:
    texts = [IDS[1:60], [7, *IDS[:30]], [*IDS[:3], 7, *IDS[3:30]]]
    before = [logits(model, ids) for ids in texts]
    store_prefix(model, IDS[:COUNT])
    for old, ids in zip(before[:2], texts[:2], strict=True):
        np.testing.assert_array_equal(logits(model, ids), old)
    part = logits(model, texts[2])  # the first three are the prefix's
    store_prefix(model, IDS[:3])
    np.testing.assert_array_equal(logits(model, texts[2]), part)
    assert np.abs(part - before[2]).max() > 1e-3


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_answers_in_the_prefix_are_those_without_drafts(model: Path, kv: Any) -> None:
    """The model goes on as the prefix does, token after token; who drafts is the model itself."""
    ids = [9, 40, 9, 40]
    for _ in range(8):
        store_prefix(model, [*ids, 5])
        with LLM(model, kv=kv) as llm:
            ids += llm.generate(ids, replace(GREEDY, max_tokens=1)).token_ids
    store_prefix(model, ids)
    found = []
    for options in ({}, {"draft": f"model:{model}", "draft_tokens": 4}):
        with LLM(model, kv=kv, **options) as llm:
            out = llm.generate(ids[:4], GREEDY)
            found.append(out.token_ids)
    assert found[0][:8] == ids[4:] and found[0] == found[1] and out.metrics.accept_length > 1


def test_kept_pages_are_of_one_prefix(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path / "pages", "kv": "float32"}
    cached, answers = [], []
    for ids in (IDS[:COUNT], IDS[:COUNT], IDS[: COUNT - 1], None):
        if ids is None:
            (model / FILE).unlink()
        else:
            store_prefix(model, ids)
        with LLM(model, **options) as llm:
            out = llm.generate(IDS[:150], GREEDY)
            cached.append(out.metrics.cached_tokens)
            answers.append(out.token_ids)
    assert cached == [0, 128, 0, 0] and answers[0] == answers[1]


def test_it_is_told_and_what_knows_none_refuses(model: Path) -> None:
    plain = make_checkpoint(model.parent / "plain", num_hidden_layers=2, seed=1)
    with LLM(plain) as llm:
        store_prefix(model, IDS[:3])
        with pytest.raises(UnsupportedError, match=r"stored prefix of 3 tokens.*an engine that runs"):
            llm.refill(model)
    with LLM(model) as llm:
        assert "stored prefix of 3 tokens" in llm.description
        with pytest.raises(UnsupportedError, match="take the place of others"):
            llm.refill(plain)
