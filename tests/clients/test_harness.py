"""lm-evaluation-harness with the model in its own process: log likelihoods and answers are the package's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients.conftest import needed

needed("lm_eval")
needed("minicpm4")

from minicpm4 import SamplingParams  # noqa: E402
from minicpm4.errors import ConfigError, RequestError  # noqa: E402
from minicpm4.evals.harness.model import Minicpm4, sampling_of  # noqa: E402
from tests.engine.conftest import require_smollm  # noqa: E402

MODEL = {"model": "smollm2-135m-instruct", "context": 256, "threads": 2, "kv": "float32"}
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome"),
    ("The capital of France is ", "Addis Ababa"),
    ("", "A text"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    require_smollm()
    return Minicpm4(**MODEL)


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_log_likelihoods_are_those_of_the_whole_text(model: Any) -> None:
    found = model.loglikelihood([asked(*pair) for pair in PAIRS], disable_tqdm=True)
    encode = model.llm.tokenizer.encode
    for (context, end), (logprob, greedy) in zip(PAIRS, found, strict=True):
        first = len(encode(context.rstrip())) if context else 1
        ids = encode(context + end) if context else [model.prefix_token_id, *encode(end)]
        assert logprob == pytest.approx(-model.llm.nll(ids)[first - 1 :].sum(dtype="float64"), rel=1e-5)
        assert greedy is (model.llm.logits(ids)[first - 1 : -1].argmax(1).tolist() == ids[first:])
    assert found[0][1] and not found[1][1]


def test_long_texts_are_read_in_windows(model: Any) -> None:
    text = "The river runs to the sea, and the sea is wide. " * 40
    (found,) = model.loglikelihood_rolling([asked(text)], disable_tqdm=True)
    ids = model.llm.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 256
    first = -model.llm.nll([model.prefix_token_id, *ids[:255]]).sum(dtype="float64")
    assert first - 100 < found < first


def test_answers_end_before_what_ends_them_and_have_no_thoughts(model: Any) -> None:
    kwargs = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    question = "Q: What is the capital of France?\nA:"
    (found,) = model.generate_until([asked(question, kwargs)], disable_tqdm=True)
    params = SamplingParams(max_tokens=12, temperature=0, stop=["\n"])
    assert found == model.llm.generate(question, params).text and "Paris" in found
    said = SimpleNamespace(
        text="<think>a\n</think>b\nc", token_ids=[5], prompt_token_ids=[5], finish_reason="length"
    )
    model.llm, real = SimpleNamespace(generate=lambda *_: [said], replies=model.llm.replies), model.llm
    try:
        (answer,) = model._said([([5], params)], [True])
        assert (answer.text, answer.stopped, answer.cut) == ("b", False, False)  # it came to its end
    finally:
        model.llm = real


def test_cut_answers_are_logged(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    kwargs = {"until": ["\n"], "max_gen_toks": 2, "do_sample": False}
    model.generate_until([asked("Q: What is the capital of France?\nA:", kwargs)], disable_tqdm=True)
    assert "1 of 1 answers were cut at max_gen_toks, 2 at most" in caplog.text


def test_chats_are_rendered_by_the_template(model: Any) -> None:
    chat = [{"role": "user", "content": "Hello?"}]
    text = model.apply_chat_template(chat)
    assert model.tok_encode(text) == model.llm.chat_ids(chat)
    begun = model.apply_chat_template([*chat, {"role": "assistant", "content": "It is"}], False)
    assert begun == text + "It is"


def test_what_does_not_fit_is_refused_unless_it_may_be_cut(model: Any) -> None:
    long = ("word " * 400).strip()
    for kind, args in (("loglikelihood", (long, " end")), ("generate_until", (long, {"until": []}))):
        with pytest.raises(
            RequestError, match=r"1 of 1 requests do not fit the context of 256 .*truncate=True"
        ):
            getattr(model, kind)([asked(*args)], disable_tqdm=True)
    model.truncate = True
    try:
        ((cut, _),) = model.loglikelihood([asked(long, " end")], disable_tqdm=True)
        ids = model.tok_encode(long + " end")[-257:]
        assert cut == pytest.approx(model.llm.endings([(ids, 256)])[0].logprob, rel=1e-5)
    finally:
        model.truncate = False


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 256}),
        ({"until": "x", "max_new_tokens": 5}, {"temperature": 0.0, "max_tokens": 5, "stop": ("x",)}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0, "max_tokens": 256}),
        ({"do_sample": True, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9, "max_tokens": 256}),
        ({"temperature": 0.5}, {"temperature": 0.5, "max_tokens": 256}),
        ({"do_sample": None, "temperature": 0.7}, {"temperature": 0.7, "max_tokens": 256}),
        ({"do_sample": None}, {"temperature": 0.0, "max_tokens": 256}),
        (
            {"do_sample": False, "repetition_penalty": 1.3},
            {"temperature": 0.0, "repetition_penalty": 1.3, "max_tokens": 256},
        ),
    ],
)
def test_settings_of_generation_are_read(given: Any, params: Any) -> None:
    assert sampling_of(given, 256) == SamplingParams(**params)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 'num_beams'"):
        sampling_of({"num_beams": 4}, 256)
    for wrong, said in (
        ({}, "no model is named"),
        ({**MODEL, "batch_size": "many"}, "no number"),
        ({**MODEL, "device": "tpu"}, "tpu"),
        ({**MODEL, "contxt": 5}, "context"),
    ):
        with pytest.raises(ConfigError, match=said):
            Minicpm4(**wrong)
