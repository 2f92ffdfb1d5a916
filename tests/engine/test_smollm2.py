"""The real small model: sensible text, and the same whatever is batched, cut or cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.config.choices import KVFormat
from tests.engine.conftest import require_smollm

GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
LICENSE = Path(__file__).parents[2] / "LICENSE"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_it_knows_the_capital_of_france(smollm: LLM) -> None:
    out = smollm.chat(QUESTION, GREEDY)
    assert "Paris" in out.text and out.finish_reason == "stop"
    assert "<|im_end|>" not in out.text and out.token_ids[-1] in smollm.tokenizer.eos_token_ids


def test_a_stream_of_the_same_is_cached_and_equal(smollm: LLM) -> None:
    long = [{"role": "system", "content": "Answer briefly. " * 20}, *QUESTION]
    first = smollm.chat(long, GREEDY)
    pieces = list(smollm.stream_chat(long, GREEDY))
    assert "".join(map(str, pieces)) == first.text
    metrics = pieces[-1].metrics
    assert metrics is not None and metrics.cached_tokens >= 64 and metrics.new_tokens == len(first.token_ids)


def test_prompts_in_a_batch_answer_as_alone(smollm: LLM) -> None:
    texts = ["The sun rises in the", "Water boils at", "One, two, three,"]
    together = smollm.generate(texts, SamplingParams(max_tokens=10, temperature=0.0))
    alone = [smollm.generate(text, SamplingParams(max_tokens=10, temperature=0.0)) for text in texts]
    assert [out.text for out in together] == [out.text for out in alone]


def test_a_stop_string_of_several_tokens(smollm: LLM) -> None:
    plain = smollm.chat(QUESTION, GREEDY).text
    out = smollm.chat(QUESTION, SamplingParams(max_tokens=24, temperature=0.0, stop=" of France is"))
    assert out.text == plain.split(" of France is")[0] and out.finish_reason == "stop"


def test_real_text_is_likelier_than_shuffled(smollm: LLM) -> None:
    ids = smollm.tokenizer.encode(LICENSE.read_text(encoding="utf-8"))[:200]
    nll = smollm.nll(ids)
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    assert nll.shape == (199,) and nll.mean() < smollm.nll(shuffled).mean() - 2


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_sparse_attention_reads_fewer_blocks_and_still_answers(kv: KVFormat) -> None:
    require_smollm()
    text = LICENSE.read_text(encoding="utf-8")[:1800] + "\n\n" + QUESTION[0]["content"]
    sparse = {"topk": 2, "window_size": 128}
    with LLM(
        "smollm2-135m-instruct", threads=2, context=1024, sparse=sparse, attention="sparse", kv=kv
    ) as llm:
        out = llm.chat([{"role": "user", "content": text}], GREEDY)
    assert out.metrics.attention == "sparse" and out.metrics.blocks_read_share < 0.9
    assert "Paris" in out.text


def test_int8_pages_are_shared_and_forked_like_others() -> None:
    require_smollm()
    ids = LICENSE.read_text(encoding="utf-8")[:1500]
    sample = SamplingParams(max_tokens=12, temperature=0.0)
    found = {}
    for prefix_cache in (True, False):
        with LLM(
            "smollm2-135m-instruct", threads=2, context=512, kv="int8", prefix_cache=prefix_cache
        ) as llm:
            answers = [llm.generate(ids, sample).token_ids for _ in range(2)]
            forks = llm.generate(ids, SamplingParams(max_tokens=12, temperature=0.0, n=2))
            found[prefix_cache] = [*answers, *(choice.token_ids for choice in forks.outputs)]
    shared, own = found[True], found[False]
    assert all(answer == own[0] for answer in own) and shared[0] == own[0]
    # Shared pages are read again in another number of rows, which rounds otherwise: near ties may fall
    # differently after some tokens, but alike for all that share.
    assert all(answer == shared[1] for answer in shared[1:])
    assert shared[1][:4] == own[0][:4]
