"""SmolLM2 from its GGUF against transformers in float32 on the same dequantised weights.

benchmarks/reference/smollm2_reference.py made the fixture. Bounds: docs/architecture.md, Accuracy.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import UnsupportedError

FIXTURES = Path(__file__).parent.parent / "fixtures"
REFERENCE = np.load(FIXTURES / "smollm2_reference.npz")
IDS = REFERENCE["text_ids"].tolist()


@pytest.fixture(scope="module")
def llm():
    return LLM("smollm2-135m-instruct", context=2304, max_batch=1)


def test_tokens_are_the_reference(llm):
    text = (FIXTURES / "reference_text.txt").read_text(encoding="utf-8")
    assert llm.tokenizer.encode(text)[:2048] == IDS


def test_truth_has_the_same_logits():
    llm = LLM("smollm2-135m-instruct", backend="ref", context=320, kv="float32", max_batch=1)
    rows = REFERENCE["logit_rows"][REFERENCE["logit_rows"] < 320]
    got = llm.logits(IDS[:320])[rows]
    np.testing.assert_allclose(got, REFERENCE["logits"][: len(rows)], atol=1e-3)


@pytest.mark.slow
def test_truth_has_the_same_logits_at_depth():
    llm = LLM("smollm2-135m-instruct", backend="ref", context=1024, kv="float32", max_batch=1)
    rows = REFERENCE["logit_rows"][REFERENCE["logit_rows"] < 1024]
    got = llm.logits(IDS[:1024])[rows]
    np.testing.assert_allclose(got, REFERENCE["logits"][: len(rows)], atol=1e-3)


def test_nll_is_within_a_thousandth(llm):
    check_nll(llm)


def test_best_tokens_agree(llm):
    check_best_tokens(llm, 0.985)


def test_int8_pages_lose_little():
    with LLM("smollm2-135m-instruct", context=2304, max_batch=1, kv="int8") as llm:
        check_nll(llm)
        check_best_tokens(llm, 0.98)


def test_activations_of_8_bits_lose_what_the_guide_says():
    try:
        llm = LLM("smollm2-135m-instruct", context=2304, max_batch=1, activations="int8")
    except UnsupportedError as error:
        pytest.skip(str(error))
    with llm:
        check_nll(llm, 4e-3)
        check_best_tokens(llm, 0.965)


def check_nll(llm, most=1e-3):
    want = REFERENCE["nll"].mean()
    got = llm.nll(IDS).mean()
    print(f"mean NLL {got:.6f}, float32 {want:.6f}, off by {got / want - 1:+.4%}")
    assert abs(got / want - 1) < most


def check_best_tokens(llm, least):
    agree = (llm.logits(IDS).argmax(axis=1) == REFERENCE["argmax"]).mean()
    print(f"argmax equal at {agree:.2%} of positions")
    assert agree >= least


@pytest.mark.parametrize("number", range(5))
def test_greedy_answers_agree_until_a_near_tie(llm, number):
    ids, want, margins = (REFERENCE[f"chat_{number}_{p}"] for p in ("prompt_ids", "answer_ids", "margins"))
    messages = json.loads(str(REFERENCE["chat_messages"][number]))
    out = llm.chat(messages, SamplingParams(max_tokens=64, temperature=0.0))
    assert out.prompt_token_ids == ids.tolist()
    sure = sure_tokens(margins)
    same = np.argmin([*(a == b for a, b in zip(out.token_ids, want, strict=False)), False])
    print(f"{same} of {len(want)} tokens equal, {sure} before the first near tie")
    assert out.token_ids[:sure] == want[:sure].tolist()


def sure_tokens(margins):
    """Tokens before the first one whose two best logits are less than 0.1 apart in float32."""
    return int(np.argmin([*(margins >= 0.1), False]))


def test_the_answers_have_enough_sure_tokens_to_check():
    assert sum(sure_tokens(REFERENCE[f"chat_{n}_margins"]) for n in range(5)) >= 20
