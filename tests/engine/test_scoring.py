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
from tests.engine.conftest import prompt

Make = Callable[..., LLM]


def test_a_text_s_direction_is_that_of_the_mean_state_that_the_head_reads(make_llm: Make) -> None:
    """Logits are linear in states: the head of the mean is the mean of the logits."""
    llm, ids = make_llm(chunk=50, max_batch=1), prompt(130, 0)
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
    assert llm.embed([]).shape == (0, llm.config.hidden_size)
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
    llm, ids = make_llm(chunk=50, max_batch=1), prompt(130, 1)
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


def test_endings_are_sums_of_a_text_s_losses(make_llm: Make) -> None:
    llm, ids = make_llm(chunk=50, max_batch=4), prompt(130, 3)
    best = int(llm.logits(ids[:-1])[-1].argmax())
    texts = [(ids, 1), (ids, 129), ([*ids[:-1], best], 129), (ids[:70], 40), ([*ids[:-1], best], 100)]
    found = llm.endings(texts)
    for (text, first), ending in zip(texts, found, strict=True):
        assert ending.logprob == pytest.approx(-llm.nll(text)[first - 1 :].sum(dtype=np.float64), abs=1e-3)
        likeliest = llm.logits(text)[first - 1 : -1].argmax(1).tolist()
        assert ending.greedy is (likeliest == text[first:])
    assert found[2].greedy and not found[1].greedy
    assert llm.endings([]) == []


def test_texts_that_differ_in_their_last_token_are_read_once() -> None:
    engine = ScriptedEngine()
    read: list[list[int]] = []
    llm = LLM.over(engine, engine.text, name="scripted")
    begin = llm.driver.read
    llm.driver.read = lambda box, ids, *more: (read.append(list(ids)), begin(box, ids, *more))[1]  # type: ignore[method-assign]
    assert len(llm.endings([([5, 6, 7], 2), ([5, 6, 8], 2), ([5, 6, 8], 1), ([5, 7, 8], 2)])) == 4
    assert read == [[5, 6], [5, 7]]


def test_ends_that_are_none_are_refused(make_llm: Make) -> None:
    llm = make_llm(context=64)
    for first in (0, 3, -1):
        with pytest.raises(RequestError, match=f"end of text 1 begins at token {first} of 3"):
            llm.endings([([1, 2], 1), ([1, 2, 3], first)])
    with pytest.raises(RequestError, match="token 100000"):
        llm.endings([([1, 100000], 1)])
    assert len(llm.endings([([1] * 65, 64)])) == 1  # the last token is not read
    with pytest.raises(RequestError, match="65 tokens, the context is 64"):
        llm.endings([([1] * 66, 65)])
