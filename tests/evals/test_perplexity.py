"""Loss over windows against one pass, places, intervals and pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM
from minicpm4.errors import ConfigError, RequestError
from minicpm4.evals.perplexity import PLACES, TextLoss, apart, read, total, window_spans
from tests.fixtures.random_checkpoint import make_checkpoint

TEXT = "Es grünt so grün. " * 6 + "The rest is said in English, at some length, and ends here."


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(make_checkpoint(tmp_path_factory.mktemp("m"))), context=512, kv="float32", isa="scalar")


@pytest.mark.parametrize("window", [7, 16, 100])
@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("count", [1, 6, 7, 8, 50])
def test_every_token_counts_once_after_enough_others(window: int, stride: int, count: int) -> None:
    taken = []
    for first, end, start in window_spans(count, window, stride):
        assert 0 <= first <= start < end and end - first <= window
        assert start == 0 or start - first >= min(window - stride, start)
        taken += range(start, end)
    assert taken == list(range(count))


def test_one_window_is_one_pass(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT, add_special_tokens=False)
    prefix = llm.tokenizer.with_prefix([])
    nats = float(llm.nll([*prefix, *ids]).sum())
    found = read(llm, TEXT, window=500)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.tokens == len(ids) - (0 if prefix else 1)
    assert found.nbytes == pytest.approx(len(TEXT.encode())) and found.perplexity == math.exp(found.nll)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXT.encode()))


def test_windows_are_those_that_can_be_read_by_hand(llm: LLM) -> None:
    ids, prefix = llm.tokenizer.encode(TEXT, add_special_tokens=False), llm.tokenizer.with_prefix([])
    room = 40 - len(prefix)
    wanted, taken = 0.0, 0
    for first, end, start in window_spans(len(ids), room, 13):
        losses = llm.nll([*prefix, *ids[first:end]])
        wanted += float(losses[-(end - start) :].sum() if start or prefix else losses.sum())
        taken = end
    assert taken == len(ids)
    assert read(llm, TEXT, window=40, stride=13).nats == pytest.approx(wanted, rel=1e-6)


def test_without_a_begin_token_the_first_does_not_count(
    tmp_path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.tokenizer, "prefix_ids", [])
    ids = llm.tokenizer.encode(TEXT, add_special_tokens=False)
    found = read(llm, TEXT, window=500)
    assert found.tokens == len(ids) - 1
    assert found.nats == pytest.approx(float(llm.nll(ids).sum()), rel=1e-5)
    with pytest.raises(RequestError, match="none has another before it"):
        read(llm, "a", window=500)


def test_without_a_begin_token_each_counts_after_another(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "prefix_ids", [])
    ids = llm.tokenizer.encode(TEXT, add_special_tokens=False)
    with pytest.raises(ConfigError, match=r"stride = 40 does not fit .* use 1 to 39"):
        read(llm, TEXT, window=40, stride=40)
    losses = [
        llm.nll(ids[first:end])[-(end - start) :] for first, end, start in window_spans(len(ids), 40, 39)
    ]
    found = read(llm, TEXT, window=40, stride=39)
    assert found.tokens == sum(map(len, losses)) == len(ids) - 1
    assert found.nats == pytest.approx(sum(float(one.sum()) for one in losses), rel=1e-6)


def test_windows_that_cannot_be_are_refused(llm: LLM) -> None:
    for window, stride in ((1, None), (40, 0), (40, 41)):
        with pytest.raises(ConfigError):
            read(llm, TEXT, window=window, stride=stride)


def loss(seed: int, nbytes: float, level: float) -> TextLoss:
    rng = np.random.default_rng(seed)
    sizes = (nbytes / PLACES,) * PLACES
    return TextLoss(tokens=1000, places=tuple(rng.normal(level, 0.1, PLACES) * sizes[0]), sizes=sizes)


def test_pairs_see_a_difference_that_is_everywhere() -> None:
    one, long = loss(1, 1e3, 2.0), loss(2, 1e5, 1.0)
    other = TextLoss(tokens=700, places=tuple(np.array(one.places) * 1.01), sizes=one.sizes)
    by, half = apart(one, other)
    assert by == pytest.approx(0.01 * one.bits_per_byte) and half < 0.1 * by < 0.1 * one.interval
    assert apart(one, one) == (0.0, None)
    both = total([one, long])
    # Long texts count by their length, and so do their places.
    assert both.bits_per_byte == pytest.approx((one.nats + long.nats) / math.log(2) / 101_000)
    assert both.interval == pytest.approx(long.interval, rel=0.1)


def test_of_a_few_tokens_no_interval_is_told(llm: LLM) -> None:
    short = read(llm, TEXT[:40], window=500)
    assert short.interval is None and apart(short, short) == (0.0, None)
    assert read(llm, TEXT * 2, window=500).interval is not None


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(400):
        one = loss(seed, 1e4, 1.0)
        held += abs(one.bits_per_byte - 1 / math.log(2)) <= one.interval
    assert 0.91 < held / 400 < 0.98
