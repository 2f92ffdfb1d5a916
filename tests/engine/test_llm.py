"""From a checkpoint to text: whatever is batched, chunked, cached or interrupted, the answer is the same."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine import plan as plan_module
from minicpm4.engine import runner as runner_module
from minicpm4.errors import (
    TextError,
)
from tests.engine.conftest import SPARSE, prompt

Make = Callable[..., LLM]
ATTENTION: list[dict[str, Any]] = [{}, {"sparse": {**SPARSE, "dense_len": 60}}]


def greedy(max_tokens: int = 12, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **options)


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
def test_a_batch_answers_as_one_by_one(make_llm: Make, attention: dict[str, Any]) -> None:
    llm = make_llm(**attention, prefix_cache=False, max_batch=3)
    batch = [prompt(n, n) for n in (5, 130, 64, 1, 90)]
    together = llm.generate(batch, greedy())
    assert [out.token_ids for out in together] == [llm.generate(ids, greedy()).token_ids for ids in batch]


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_size_of_chunks_changes_nothing(make_llm: Make, attention: dict[str, Any], chunk: int) -> None:
    ids = prompt(150)
    whole = make_llm(**attention).logits(ids)
    np.testing.assert_allclose(make_llm(**attention, chunk=chunk, max_batch=1).logits(ids), whole, atol=2e-5)


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
def test_the_prefix_cache_changes_nothing(make_llm: Make, attention: dict[str, Any]) -> None:
    llm, ids = make_llm(**attention), prompt(200)
    first = llm.generate(ids, greedy())
    again = llm.generate(ids, greedy())
    longer = llm.generate(ids[:150] + prompt(40, 1), greedy())
    assert first.metrics.cached_tokens == 0 and again.metrics.cached_tokens > 180
    assert longer.metrics.cached_tokens >= 128
    assert again.token_ids == first.token_ids
    fresh = make_llm(**attention, prefix_cache=False)
    assert longer.token_ids == fresh.generate(ids[:150] + prompt(40, 1), greedy()).token_ids


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
def test_preemption_changes_nothing(
    make_llm: Make, attention: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "BATCH_TOKENS", 1)
    llm = make_llm(**attention, context=256, max_batch=4)
    batch = [prompt(60, n) for n in range(4)]
    together = [out.token_ids for out in llm.generate(batch, greedy(50))]
    assert llm.engine.scheduler.num_preemptions > 0
    assert together == [llm.generate(ids, greedy(50)).token_ids for ids in batch]


def test_sparse_attention_is_used_from_dense_len_on(make_llm: Make) -> None:
    llm = make_llm(sparse={**SPARSE, "dense_len": 60})
    short, long = llm.generate([prompt(20), prompt(200)], greedy(8))
    assert (short.metrics.attention, short.metrics.blocks_read_share) == ("dense", 1.0)
    assert long.metrics.attention == "sparse" and long.metrics.blocks_read_share < 0.8


def test_below_dense_len_sparse_settings_change_nothing(make_llm: Make) -> None:
    ids = prompt(150)
    sparse = make_llm(sparse={**SPARSE, "dense_len": 151}).logits(ids)
    np.testing.assert_allclose(sparse, make_llm().logits(ids), atol=2e-5)
    assert np.abs(make_llm(attention="sparse", sparse=SPARSE).logits(ids) - sparse).max() > 1e-3


def test_a_budget_that_covers_everything_is_dense_attention(make_llm: Make) -> None:
    ids = prompt(150)
    covering = make_llm(attention="sparse", sparse={**SPARSE, "topk": 20})
    np.testing.assert_allclose(covering.logits(ids), make_llm().logits(ids), atol=2e-5)


def test_ref_and_cpu_agree(make_llm: Make) -> None:
    ids = prompt(100)
    expected = make_llm(backend="ref").logits(ids)
    np.testing.assert_allclose(make_llm(backend="cpu").logits(ids), expected, atol=1e-3)


def test_greedy_generation_follows_the_logits(make_llm: Make) -> None:
    llm, ids = make_llm(), prompt(30)
    out = llm.generate(ids, greedy(6, ignore_eos=True, logprobs=2))
    logits = llm.logits(ids + out.token_ids)[29:-1]
    assert out.token_ids == logits.argmax(axis=1).tolist()
    own = logits[np.arange(6), out.token_ids] - np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    assert out.logprobs is not None
    np.testing.assert_allclose([entry.logprob for entry in out.logprobs], own, atol=1e-4)
    assert all(len(entry.top) == 2 for entry in out.logprobs)


def test_nll_is_that_of_the_logits(make_llm: Make) -> None:
    llm, ids = make_llm(chunk=50, max_batch=1), prompt(150)
    logits = llm.logits(ids).astype(np.float64)
    expected = np.log(np.exp(logits).sum(axis=1))[:-1] - logits[np.arange(149), ids[1:]]
    got = llm.nll(np.array(ids))
    assert got.shape == (149,) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_samples_have_texts_of_their_own(make_llm: Make) -> None:
    out = make_llm().generate(prompt(20), SamplingParams(n=3, max_tokens=10, seed=4))
    assert len(out.outputs) == 3 and [one.index for one in out.outputs] == [0, 1, 2]
    assert len({tuple(one.token_ids) for one in out.outputs}) == 3
    assert out.text == out.outputs[0].text


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
def test_every_sample_goes_on_from_a_cache_of_its_own(make_llm: Make, attention: dict[str, Any]) -> None:
    llm, ids = make_llm(**attention), prompt(70)
    out = llm.generate(ids, SamplingParams(n=3, max_tokens=20, seed=4, logprobs=0, ignore_eos=True))
    for one in out.outputs:
        nll = llm.nll(ids + one.token_ids)[69:]
        assert one.logprobs is not None
        np.testing.assert_allclose([-entry.logprob for entry in one.logprobs], nll, atol=1e-4)


def test_a_seed_repeats_whatever_is_batched_beside(make_llm: Make) -> None:
    llm = make_llm(prefix_cache=False)
    params = SamplingParams(max_tokens=15, seed=11)
    alone = llm.generate(prompt(25), params).token_ids
    beside = llm.generate([prompt(40, 1), prompt(25)], [SamplingParams(max_tokens=20), params])
    assert beside[1].token_ids == alone


def test_text_ends_before_a_stop_string_of_several_tokens(make_llm: Make) -> None:
    llm = make_llm()
    plain = llm.generate("abc", greedy(30, ignore_eos=True))
    stop = plain.text[4:9]
    out = llm.generate("abc", greedy(30, ignore_eos=True, stop=[stop]))
    assert out.text == plain.text[: plain.text.index(stop)] and out.finish_reason == "stop"
    assert out.token_ids == plain.token_ids[: len(out.token_ids)] and len(out.token_ids) < 30
    assert out.outputs[0].stop == stop and plain.outputs[0].stop is None


def test_a_stop_string_may_name_a_special_token(make_llm: Make) -> None:
    llm = make_llm()
    turn = llm.tokenizer.token_to_id("<|im_start|>")
    assert turn is not None
    params = {"max_tokens": 40, "seed": 3, "logit_bias": {turn: 1e4, 97: 1e4}, "ignore_eos": True}
    out = llm.generate("abc", SamplingParams(**params, stop=["<|im_start|>"]))
    assert out.finish_reason == "stop" and out.token_ids[-1] == turn and turn not in out.token_ids[:-1]
    shown = llm.generate("abc", SamplingParams(**params, skip_special_tokens=False))
    assert shown.text == "".join("a" if i == 97 else "<|im_start|>" for i in shown.token_ids)


def test_a_stream_gives_the_text_in_pieces(make_llm: Make) -> None:
    llm = make_llm()
    whole = llm.generate("hello", greedy())
    pieces = list(llm.stream("hello", greedy()))
    assert "".join(map(str, pieces)) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert pieces[-1].metrics is not None and pieces[-1].finish_reason == whole.finish_reason
    assert all(piece.metrics is None for piece in pieces[:-1])


def test_two_open_streams_do_not_mix(make_llm: Make) -> None:
    llm = make_llm()
    expected = [llm.generate(text, greedy(ignore_eos=True)).text for text in ("one", "two")]
    streams = [llm.stream(text, greedy(ignore_eos=True)) for text in ("one", "two")]
    turns = list(zip(*streams, strict=True))
    assert ["".join(str(turn[i]) for turn in turns) for i in range(2)] == expected


def test_closing_a_stream_frees_its_pages(make_llm: Make) -> None:
    llm = make_llm()
    stream = llm.stream("hello", greedy(100))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    pages = llm.engine.scheduler.pages
    assert not llm.engine.scheduler.has_work and pages.num_available == pages.num_pages


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_is_not_swallowed_where_a_stream_is_collected(
    make_llm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, struck = make_llm(), iter([KeyboardInterrupt()])

    def peak() -> int:
        for interrupt in struck:
            raise interrupt
        return 0

    stream = llm.stream([1, 2], greedy(20))
    next(stream)
    monkeypatch.setattr("minicpm4.engine.request.peak_memory", peak)
    del stream
    with pytest.raises(KeyboardInterrupt):  # it hits whoever has the engine do something next
        llm.generate([3], greedy())
    assert llm.generate([3], greedy()).token_ids
    pages = llm.engine.scheduler.pages  # type: ignore[attr-defined]
    assert pages.num_available == pages.num_pages


def test_an_interrupt_leaves_the_llm_usable(make_llm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm()
    expected = llm.generate("hello", greedy()).token_ids
    calls = iter([False] * 3 + [True] + [False] * 100)
    original = runner_module.forward

    def forward(*args: Any, **more: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr(runner_module, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["hello", "hello"], greedy())
    pages = llm.engine.scheduler.pages
    assert not llm.engine.scheduler.has_work and pages.num_available == pages.num_pages
    assert llm.generate("hello", greedy()).token_ids == expected


def test_chat_goes_through_the_template(make_llm: Make) -> None:
    llm = make_llm()
    out = llm.chat([{"role": "user", "content": "hi"}], greedy())
    text = "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert out.prompt_token_ids == llm.tokenizer.encode(text)
    pieces = llm.stream_chat([{"role": "user", "content": "hi"}], greedy())
    assert "".join(map(str, pieces)) == out.text


def test_the_next_turn_reads_only_what_is_new(make_llm: Make) -> None:
    llm = make_llm(sparse={**SPARSE, "dense_len": 40})
    messages = [{"role": "user", "content": "a question " * 8}]
    first = llm.chat(messages, greedy())
    messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "more"}]
    second = llm.chat(messages, greedy())
    assert second.metrics.cached_tokens >= first.metrics.prompt_tokens - 32


def test_progress_counts_prompt_tokens(make_llm: Make) -> None:
    llm, seen = make_llm(chunk=32), []
    llm.generate([prompt(100), prompt(50, 1)], greedy(1), progress=lambda *done: seen.append(done))
    assert seen[0] == (0, 150) and (32, 150) in seen and seen[-1] == (150, 150)
    seen.clear()
    list(llm.stream(prompt(70, 2), greedy(1), progress=lambda *done: seen.append(done)))
    assert seen == [(0, 70), (32, 70), (64, 70), (70, 70)]


def test_a_checkpoint_without_tokenizer_works_with_ids(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path / name)
    llm = LLM(tmp_path)
    assert len(llm.generate([1, 2, 3], greedy(5, ignore_eos=True)).token_ids) == 5
    assert not llm.has_chat_template
    with pytest.raises(TextError, match="holds no tokenizer, so it reads and writes token ids only"):
        llm.generate("hello")
    with pytest.raises(TextError, match="holds no tokenizer"):
        llm.generate([1], greedy(stop="x"))


def test_one_line_says_what_was_chosen(make_llm: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "minicpm4"):
        make_llm(sparse={**SPARSE, "dense_len": 60})
    (line,) = [record.getMessage() for record in caplog.records]
    for part in (
        "attention: sparse from 60 tokens",
        "weights: 16 matrices f32",
        "kernels: cpu",
        "context 512",
    ):
        assert part in line


def test_a_context_beyond_the_models_is_warned_about(
    make_llm: Make, caplog: pytest.LogCaptureFixture
) -> None:
    llm = make_llm(context=600)
    assert "context 600 is beyond the model's 512" in caplog.text
    assert len(llm.generate(prompt(550), greedy(5, ignore_eos=True)).token_ids) == 5


@pytest.mark.parametrize(
    "prompts", [[], (), iter([]), np.zeros((0, 3), int)], ids=["list", "tuple", "iterator", "array"]
)
@pytest.mark.parametrize("params", [None, [], greedy()], ids=["none", "empty", "one"])
def test_no_prompts_have_no_outputs(make_llm: Make, prompts: Any, params: Any) -> None:
    assert make_llm().generate(prompts, params) == []


def test_every_shape_of_a_batch_is_the_same_batch(make_llm: Make) -> None:
    llm, batch = make_llm(), [[1, 2, 3], [4, 5, 6]]
    expected = [llm.generate(ids, greedy()).token_ids for ids in batch]
    shapes: list[Any] = [batch, tuple(map(tuple, batch)), iter(batch), np.array(batch), list(np.array(batch))]
    for prompts in shapes:
        outputs = llm.generate(prompts, (greedy() for _ in batch))
        assert [out.token_ids for out in outputs] == expected
    assert llm.generate(iter(batch[0]), greedy()).token_ids == expected[0]


def test_of_a_list_of_params_some_may_be_none(make_llm: Make) -> None:
    llm, ids = make_llm(), [[1, 2], [3]]
    alone = llm.generate(ids[0], greedy()).token_ids
    assert [len(out.outputs) for out in llm.generate(ids, [greedy(n=2), None])] == [2, 1]
    assert llm.generate(ids, [greedy(), None])[0].token_ids == alone


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, minicpm4; assert 'numpy' not in sys.modules; assert 'LLM' in dir(minicpm4)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import minicpm4

    assert all(getattr(minicpm4, name) is not None for name in minicpm4.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        minicpm4.LMM  # noqa: B018


@pytest.mark.parametrize("attention", ATTENTION, ids=["dense", "sparse"])
def test_threads_share_an_llm(make_llm: Make, attention: dict[str, Any]) -> None:
    """Batches, streams, chats and scores at the same time, each as it would be alone."""
    llm = make_llm(**attention)
    talk = [{"role": "user", "content": "hi " * 20}]
    calls: list[Callable[[], Any]] = [
        lambda: [out.token_ids for out in llm.generate([prompt(90, 1), prompt(20, 2)], greedy())],
        lambda: [token for piece in llm.stream(prompt(70, 3), greedy()) for token in piece.token_ids],
        lambda: llm.chat(talk, greedy()).token_ids,
        lambda: llm.nll(prompt(80, 4)).tolist(),
    ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: calls[i % 4](), range(24)))
    assert together == alone * 6
    pages = llm.engine.scheduler.pages
    assert not llm.engine.has_work and pages.num_available == pages.num_pages


def test_an_llm_may_be_used_from_within_its_own_progress(make_llm: Make) -> None:
    llm, answers = make_llm(), []
    alone = llm.generate("a", greedy()).token_ids
    llm.nll(prompt(20), progress=lambda *_: answers.append(llm.generate("a", greedy()).token_ids))
    assert answers and set(map(tuple, answers)) == {tuple(alone)}
