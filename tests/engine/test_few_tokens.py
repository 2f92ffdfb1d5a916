"""Drafts among fewer tokens (FR-Spec): the frequent ones, the end tokens always; answers stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import ConfigError
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.ref import RefOps
from minicpm4.model.ranks import chosen_tokens, few_tokens, write_ranks
from tests.cli.conftest import Result, minicpm
from tests.fixtures.loading import load_model
from tests.model.drafts import make_draft, make_eagle3

__all__ = ["minicpm"]  # a fixture

Make = Callable[..., LLM]
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8] * 12, [9, 8, 7]]


def ranks(folder: Path, llm: LLM, most: int = 200) -> Path:
    """Of the tiny model's tokens, the lower the more frequent; ``most`` have been seen."""
    file = folder / "ranks.json"
    counts = np.maximum(most - np.arange(llm.config.vocab_size), 0)
    write_ranks(file, counts, llm.tokenizer.digest)
    return file


def test_ranks_come_back_the_most_frequent_first_and_ends_always(make_llm: Make, tmp_path: Path) -> None:
    llm = make_llm()
    file = ranks(tmp_path, llm)
    digest, size = llm.tokenizer.digest, llm.config.vocab_size
    assert chosen_tokens(file, digest, size, 5).tolist() == [0, 1, 2, 3, 4]
    assert chosen_tokens(file, digest, size, 5, [300, 310]).tolist() == [0, 1, 2, 300, 310]
    assert len(chosen_tokens(file, digest, size, 300)) == 200, "the others were never seen"


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_rows_of_a_head_are_those_of_the_whole(checkpoint: Path, weights: str) -> None:
    found = inspect(checkpoint, EngineOptions(weights=weights))
    tokens = np.array([3, 4, 77, 300], np.int32)
    few = few_tokens(found.checkpoint, found.weights, found.config, RefOps(), tokens)
    whole: PackedTensor = load_model(checkpoint, weights).weights.head
    assert few.linear.weight.spec == whole.spec
    np.testing.assert_array_equal(unpack(few.linear.weight), unpack(whole)[tokens])


@pytest.mark.parametrize("kind", ["head", "model"])
def test_answers_are_the_same_and_drafts_are_among_the_few(
    make_llm: Make, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    plain = make_llm(max_batch=2, draft="off")
    head = make_draft(tmp_path / "head", plain.config, final_norm=None)
    draft = f"eagle:{head}" if kind == "head" else f"model:{checkpoint}"
    options: Any = {"draft": draft, "draft_tokens": 4, "max_batch": 2, "draft_ranks": ranks(tmp_path, plain)}
    said: list[int] = []
    for vocab in ("25%", 40, None):
        llm = make_llm(draft_vocab=vocab, **options)
        drafter: Any = llm.engine.drafting.drafter  # type: ignore[attr-defined]
        real = drafter.guess

        def guess(wishes: Any, real: Any = real) -> Any:
            found = real(wishes)
            said.extend(token for one in found if one is not None for token in one.drafts.tokens)
            return found

        drafter.guess = guess
        wanted = [out.token_ids for out in plain.generate(PROMPTS, GREEDY)]
        assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == wanted
        ends = set(llm.tokenizer.eos_token_ids)
        assert said and all(token < 80 or token in ends for token in said)


def test_a_model_that_drafts_for_itself_is_right_where_it_may_say_so(
    make_llm: Make, checkpoint: Path, tmp_path: Path
) -> None:
    file = ranks(tmp_path, make_llm(), most=320)
    llm = make_llm(draft=f"model:{checkpoint}", draft_tokens=3, draft_ranks=file, draft_vocab="100%")
    metrics = llm.generate(PROMPTS[0], GREEDY).metrics
    assert metrics.draft_tokens == metrics.accepted_tokens > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft": "suffix", "draft_vocab": "25%"}, "draft is 'suffix'"),
        ({"draft": "mtp", "draft_vocab": "25%"}, "minicpm4 spec rank"),
        ({"draft": "model:x", "draft_vocab": "many", "draft_ranks": "r"}, "neither a share nor a number"),
        ({"draft": "model:x", "draft_vocab": 0, "draft_ranks": "r"}, "neither a share nor a number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**settings)


def test_files_that_are_no_ranks_are_refused(make_llm: Make, checkpoint: Path, tmp_path: Path) -> None:
    llm = make_llm()
    file = ranks(tmp_path, llm)
    options: Any = {"draft": f"model:{checkpoint}", "draft_ranks": file}
    with pytest.raises(ConfigError, match="is more than the 320 tokens"):
        make_llm(draft_vocab="400", **options)
    raw = json.loads(file.read_text())
    for change, message in (
        ({"vocabulary": "0" * 64}, r"another vocabulary \(000000000000\)"),
        ({"tokens": [1, 999]}, "tokens that the model has not"),
        ({"format": "x"}, "holds no ranks"),
    ):
        file.write_text(json.dumps({**raw, **change}))
        with pytest.raises(ConfigError, match=message):
            make_llm(**options)
    (tmp_path / "freq.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is pickled"):
        make_llm(**{**options, "draft_ranks": tmp_path / "freq.pt"})
    states = {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]}
    head = make_eagle3(tmp_path / "head", llm.config, 50, **states)
    with pytest.raises(ConfigError, match="has a vocabulary of its own"):
        make_llm(draft=f"eagle:{head}", draft_ranks=ranks(tmp_path, llm))


def test_the_command_counts_what_a_tokenizer_makes_of_text(
    minicpm: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("aaaa bb")
    (tmp_path / "b.md").write_text("aab")
    out = tmp_path / "ranks.json"
    result = minicpm("spec", "rank", str(checkpoint), "--corpus", str(tmp_path), "--out", str(out))
    assert result.code == 0 and "10 tokens counted, 3 different ones" in result.out, result.err
    raw = json.loads(out.read_text())
    assert raw["counts"] == [6, 3, 1] and raw["counted"] == 10
    with LLM(checkpoint) as llm:
        a, b = llm.tokenizer.encode("a")[-1], llm.tokenizer.encode("b")[-1]
        assert raw["tokens"][:2] == [a, b] and raw["vocabulary"] == llm.tokenizer.digest
