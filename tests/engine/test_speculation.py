"""Drafting on a real model changes no token: weights, batches, sparse attention, grammars, prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.outputs import RequestOutput
from minicpm4.errors import ConfigError
from minicpm4.kernels.cpu import isa_levels
from tests.engine.conftest import SPARSE as SMALL
from tests.engine.conftest import require_smollm
from tests.engine.test_all_together import FORMS, Make, asked
from tests.fixtures.random_checkpoint import make_checkpoint

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
CODE = """def total(rows):
    result = 0
    for name, value in rows:
        result += value
    return result
"""
PROMPTS = [
    f"Rename `result` to `sum` in this code and print all of it:\n```python\n{CODE}```",
    f"Repeat this text word for word:\n\n{LICENSE[:300]}",
    "Tell a short story about a lighthouse keeper.",
    "Write the numbers from one to twenty, in words, with commas between.",
]
MODEL = "smollm2-135m-instruct"


def answers(draft: str, params: list[SamplingParams], long: str = "", **options: Any) -> list[RequestOutput]:
    """The answers to all prompts, with every one of ``params`` in turn."""
    found = []
    with LLM(MODEL, threads=2, context=2048, draft=draft, **options) as llm:
        ids = [llm.chat_ids([{"role": "user", "content": long + text}]) for text in PROMPTS]
        for one in params:
            found += llm.generate(ids, one)
    return found


DRAWN = [
    SamplingParams(max_tokens=40, temperature=0.0),
    SamplingParams(max_tokens=24, temperature=1.0, seed=4),
]
SPARSE = {"attention": "sparse", "sparse": {"topk": 2, "window_size": 128, "dense_len": -1}}


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 1},
        {"max_batch": 8, "draft_tokens": 7},
        {"weights": "bf16", "max_batch": 4, "draft_tokens": 4},
        {"weights": "ternary", "max_batch": 1, "draft_tokens": 15},
        {"long": LICENSE[:4000], "max_batch": 4, "draft_tokens": 7, **SPARSE},
        {"long": LICENSE[:4000], "kv": "int8", "max_batch": 1, "draft_tokens": 7, **SPARSE},
    ],
    ids=["alone", "batch", "bf16", "ternary", "sparse", "sparse int8 pages"],
)
def test_not_one_token_differs(options: dict[str, Any]) -> None:
    require_smollm()
    if isa_levels()[-1] == "amx":  # there a row's bits depend on those beside it
        options = {**options, "isa": "avx512_bf16"}
    drafted = answers("suffix", DRAWN, **options)
    options.pop("draft_tokens", None)
    plain = answers("off", DRAWN, **options)
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert [out.text for out in drafted] == [out.text for out in plain]
    if "attention" in options:
        assert all(out.metrics.blocks_read_share < 0.5 for out in plain)
    assert all(out.metrics.accept_length is None for out in plain)
    lengths = [out.metrics.accept_length or 1.0 for out in drafted]
    assert min(lengths) >= 1 and sum(out.metrics.accepted_tokens for out in drafted) > 8


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary, smaller, which knows nothing of what the first says."""
    path = tmp_path_factory.mktemp("models") / "stranger"
    return make_checkpoint(path, num_hidden_layers=1, seed=7)


@pytest.mark.parametrize(
    ("backend", "draft"), [("cpu", "suffix"), ("ref", "suffix"), ("cpu", "itself"), ("cpu", "stranger")]
)
def test_grammars_sparse_attention_prefixes_and_batches_at_once(
    make_llm: Make, checkpoint: Path, stranger: Path, backend: str, draft: str
) -> None:
    options = {"sparse": {**SMALL, "dense_len": 60}, "chunk": 8, "max_batch": 4, "backend": backend}
    draft = {"itself": f"model:{checkpoint}", "stranger": f"model:{stranger}"}.get(draft, draft)
    plain, drafted = make_llm(draft="off", **options), make_llm(draft=draft, draft_tokens=6, **options)
    ids, params = [ids for _, ids, _ in asked()], [params for _, _, params in asked()]
    wanted = plain.generate(ids, params)
    for _ in range(2):  # then all is cached
        for name, one, other in zip([*FORMS] * 2, drafted.generate(ids, params), wanted, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason), name
    engine: Any = drafted.engine
    held = [engine.scheduler.pages, getattr(engine.drafting.drafter, "_pages", None)]
    assert all(pages is None or pages.num_available == pages.num_pages for pages in held)
    assert not vars(engine.drafting.drafter).get("_mirrors")


def test_a_model_that_drafts_for_itself_is_always_right(make_llm: Make, checkpoint: Path) -> None:
    plain, drafted = (
        make_llm(draft="off"),
        make_llm(draft=f"model:{checkpoint}", draft_tokens=5, chunk=16, max_batch=2),
    )
    assert drafted.plan.draft > 0 == plain.plan.draft
    prompts = [[*range(5, 70)], [9, 8, 7], [*range(5, 40)]]
    params = SamplingParams(max_tokens=25, temperature=0.0, ignore_eos=True)
    for one, other in zip(drafted.generate(prompts, params), plain.generate(prompts, params), strict=True):
        assert one.token_ids == other.token_ids
        metrics = one.metrics
        assert metrics.draft_tokens == metrics.accepted_tokens and (metrics.accept_length or 0) >= 3


def test_drawn_answers_are_those_without_drafts(make_llm: Make, stranger: Path, checkpoint: Path) -> None:
    params = [SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=s, n=2) for s in range(4)]
    prompts = [[5 + s, 6, 7] * 9 for s in range(4)]
    wanted = make_llm(max_batch=3).generate(prompts, params)
    for name in (stranger, checkpoint):
        found = make_llm(max_batch=3, draft=f"model:{name}", draft_tokens=3).generate(prompts, params)
        for one, other in zip(found, wanted, strict=True):
            assert [s.token_ids for s in one.outputs] == [s.token_ids for s in other.outputs]


def test_thirty_two_chats_with_secrets_guess_from_their_own_text_alone(make_llm: Make) -> None:
    llm = make_llm(max_batch=8, draft="suffix", draft_tokens=6)
    drafter: Any = llm.engine.drafting.drafter  # type: ignore[attr-defined]
    real, guesses = drafter.guess, 0

    def guess(wishes: Any) -> Any:
        nonlocal guesses
        found = real(wishes)
        for wish, one in zip(wishes, found, strict=True):
            guesses += one is not None
            assert one is None or set(one.drafts.tokens) <= set(wish.sequence.tokens)
        return found

    drafter.guess = guess
    secrets = [[5 + i, 40 + i, 80 + i, 120 + i] for i in range(32)]
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    for _ in range(2):
        llm.generate([[200, 201, *secret * 6, 200, 201] for secret in secrets], params)
    assert guesses > 64 and not drafter._texts and not llm.engine.drafting._records  # type: ignore[attr-defined]


def test_a_model_of_another_vocabulary_is_refused_by_its_first_token(make_llm: Make) -> None:
    require_smollm()
    with pytest.raises(ConfigError, match=f"model:{MODEL} has another vocabulary: its token 0 is"):
        make_llm(draft=f"model:{MODEL}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft": "sufix"}, "suffix"),
        ({"draft": "model:"}, "model:NAME"),
        ({"draft": "suffix", "draft_tokens": 64}, "draft_tokens"),
        ({"draft": "off", "draft_tokens": 3}, "draft is 'off'"),
    ],
)
def test_what_is_no_drafter_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(MODEL, **settings)
