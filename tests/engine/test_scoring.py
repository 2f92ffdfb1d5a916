"""What a whole text is asked for at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.engine.scoring import Direction
from minicpm4.errors import ConfigError, RequestError, UnsupportedError
from minicpm4.kernels.ref import RefOps
from minicpm4.model.forward import logits as head
from minicpm4.testing import ScriptedEngine

Make = Callable[..., LLM]


def test_a_text_s_direction_is_that_of_the_mean_state_that_the_head_reads(make_llm: Make) -> None:
    """Logits are linear in states: the head of the mean is the mean of the logits."""
    llm, ids = make_llm(chunk=50, max_batch=1), np.random.default_rng(0).integers(0, 256, 130).tolist()
    found = llm.embed(ids)
    assert found.dtype == np.float32 and found.shape == (llm.config.hidden_size,)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert llm._weights is not None
    mine = head(RefOps(), llm._weights.weights, found[None])[0]
    mean = llm.logits(ids).astype(np.float64).mean(0)
    cosine = mine @ mean / np.linalg.norm(mine) / np.linalg.norm(mean)
    assert cosine > 1 - 1e-6
    np.testing.assert_allclose(make_llm(prefix_cache=False).embed(ids), found, atol=2e-5)


def test_texts_in_a_list_have_a_row_each_and_hold_no_pages_afterwards(make_llm: Make) -> None:
    llm = make_llm()
    found = llm.embed(["one", "another text"])
    np.testing.assert_allclose(found[1], llm.embed("another text"), atol=2e-5)
    assert len(llm.embed([])) == 0
    assert llm.driver.call(lambda engine: engine.scheduler.pages.num_available) == (
        llm.driver.call(lambda engine: engine.limits.num_pages)
    )


def test_what_cannot_be_embedded_is_refused(make_llm: Make) -> None:
    llm = make_llm(context=64)
    with pytest.raises(RequestError, match="100 tokens, the context is 64"):
        llm.embed([1] * 100)
    with pytest.raises(RequestError, match="empty"):
        llm.embed("")
    engine = ScriptedEngine()
    with pytest.raises(UnsupportedError, match="shows no states"):
        LLM.over(engine, engine.text, name="scripted").embed("text")


def test_log_probabilities_of_a_text_are_those_of_its_logits(make_llm: Make) -> None:
    llm, ids = make_llm(chunk=50, max_batch=1), np.random.default_rng(1).integers(0, 256, 130).tolist()
    first, *others = llm.prompt_logprobs(ids, 3)
    assert first is None and len(others) == 129
    np.testing.assert_allclose([-one.logprob for one in others if one], llm.nll(ids), atol=1e-5)
    assert [next(iter(one.top)) for one in others if one] == llm.logits(ids)[:-1].argmax(1).tolist()
    with pytest.raises(ConfigError, match="top"):
        llm.prompt_logprobs(ids, -1)


def test_how_a_text_is_cut_changes_no_bit_of_its_sum() -> None:
    rows = np.random.default_rng(2).standard_normal((300, 48)).astype(np.float32)
    found = []
    for cut in (1, 7, 64, 300):
        score = Direction([1] * 300)
        score.visit(0, rows[:90])  # begun, and begun anew
        for start in range(0, 300, cut):
            score.visit(start, rows[start : start + cut])
        found.append(score.result())
    assert all((one == found[0]).all() for one in found)
