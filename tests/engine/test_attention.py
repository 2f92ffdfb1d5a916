"""Requests that attend in different ways, side by side: each answers as it would alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import ConfigError, RequestError
from tests.engine.conftest import SPARSE, prompt

Make = Callable[..., LLM]
WAYS = ("auto", "dense", "sparse")
SINCE = 120  # tokens from which "auto" is sparse


def greedy(attention: str | None = None, **more: Any) -> SamplingParams:
    given = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "logprobs": 0, **more}
    return SamplingParams(attention=attention, **given)


def said(output: Any) -> list[tuple[int, float]]:
    return [(one.token_id, one.logprob) for one in output.logprobs]


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    """Pages of other sizes, and other rows beside it, move the last bits."""
    assert [token for token, _ in found] == [token for token, _ in wanted]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in wanted], atol=1e-5)


def make(make_llm: Make, **options: Any) -> LLM:
    return make_llm(sparse={**SPARSE, "dense_len": SINCE}, chunk=32, context=512, **options)


def test_each_way_is_that_of_a_model_loaded_so(make_llm: Make) -> None:
    llm, ids = make(make_llm), prompt(150)
    loaded = {"dense": {"attention": "dense"}, "sparse": {"attention": "sparse", "sparse": SPARSE}}
    found = {way: llm.generate(ids, greedy(way)) for way in WAYS}
    for way, options in loaded.items():
        other = make_llm(**options, chunk=32, context=512)
        same(said(found[way]), said(other.generate(ids, greedy())))
    same(said(found["auto"]), said(llm.generate(ids, greedy())))
    assert len({said(one)[0][1] for one in found.values()}) == 3, "the three ways do not differ: a weak test"
    assert {way: one.metrics.attention for way, one in found.items()} == {
        "auto": "sparse",
        "dense": "dense",
        "sparse": "sparse",
    }


@pytest.mark.parametrize("backend", ["cpu", "ref"])
def test_a_batch_of_all_ways_gives_each_the_answer_it_gives_alone(make_llm: Make, backend: str) -> None:
    llm = make(make_llm, backend=backend, prefix_cache=False)
    asked = [(prompt(length, length), way) for length in (40, 150, 230) for way in WAYS][1:]
    alone = [llm.generate(ids, greedy(way)) for ids, way in asked]
    together = llm.generate([ids for ids, _ in asked], [greedy(way) for _, way in asked])
    for one, other in zip(alone, together, strict=True):
        same(said(one), said(other))


def test_what_was_read_one_way_is_not_found_by_another(make_llm: Make) -> None:
    """Keys and values of deeper layers are those of states that attended in that way."""
    ids, fresh = prompt(200), {}
    for way in WAYS:
        fresh[way] = said(make(make_llm).generate(ids, greedy(way)))
    llm = make(make_llm)
    first = {way: llm.generate(ids, greedy(way)) for way in WAYS}
    again = {way: llm.generate(ids, greedy(way)) for way in WAYS}
    assert [one.metrics.cached_tokens for one in first.values()] == [0, 0, 0]
    assert [one.metrics.cached_tokens for one in again.values()] == [192, 192, 192]
    for way in WAYS:
        same(said(again[way]), fresh[way])


def test_several_samples_attend_alike(make_llm: Make) -> None:
    llm, ids = make(make_llm), prompt(150)
    alone = llm.generate(ids, greedy("dense"))
    output = llm.generate(ids, greedy("dense", n=3))
    assert [one.token_ids for one in output.outputs] == [alone.token_ids] * 3


def test_what_a_model_is_loaded_as_is_no_other_way(make_llm: Make) -> None:
    llm, ids = make_llm(attention="sparse", sparse=SPARSE), prompt(150)
    llm.generate(ids, greedy())
    assert llm.generate(ids, greedy("sparse")).metrics.cached_tokens == 144  # pages of 16
    dense = make_llm(attention="dense")
    dense.generate(ids, greedy())
    assert dense.generate(ids, greedy("dense")).metrics.cached_tokens == 128


def test_what_cannot_be_had_is_refused(make_llm: Make) -> None:
    with pytest.raises(ConfigError, match="attention = 'some'"):
        SamplingParams(attention="some")
    with pytest.raises(RequestError, match=r"attention = 'sparse' cannot be had"):
        make_llm(attention="dense").generate("a", greedy("sparse"))
