"""Stages of other kinds than plain text: low-rank pairs, chats, needles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.train.export import final_tensors
from minicpm4.train.metrics import read_metrics
from minicpm4.train.prepare import packed, prepare
from minicpm4.train.recipe import parse_recipe
from minicpm4.train.sources import sources
from tests.train.runs import SHAPE, corpus, recipe, runner, stage

torch = pytest.importorskip("torch")
MADE = {"haystack": "text", "documents": 9, "lengths": [64]}
LORA = {"rank": 4, "targets": ["self_attn.*", "down_proj"]}


def tensors(run: Path, step: int) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(run / f"step-{step:09d}" / "model" / "model.safetensors")


def test_pairs_are_trained_alone_and_merged_at_the_stage_s_end(tmp_path: Path) -> None:
    made = recipe(stage(steps=3), stage("pairs", steps=4, rate=0.003, lora=LORA), stage("after", steps=2))
    data = corpus(tmp_path / "data")
    made_run = runner(made, tmp_path / "run", data)
    assert made_run.run().finished
    before, during, after = (tensors(tmp_path / "run", n) for n in (3, 7, 9))
    for name, value in before.items():
        touched = ("self_attn" in name and value.ndim == 2) or "down_proj" in name
        assert (value == during[name]).all() == (not touched), name
    change = during["model.layers.0.mlp.down_proj.weight"] - before["model.layers.0.mlp.down_proj.weight"]
    assert np.linalg.matrix_rank(change, tol=1e-6) == 4
    assert any((during[name] != after[name]).all() for name in during)  # the next stage trains all again


def test_pairs_alone_lower_the_loss(tmp_path: Path) -> None:
    made = recipe(stage("pairs", steps=30, rate=0.01, lora={"rank": 8}))
    runner(made, tmp_path / "run", corpus(tmp_path / "data")).run()
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_a_stage_of_pairs_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    made = recipe(stage(steps=3), stage("pairs", steps=6, lora=LORA), checkpoints={"every": 2})
    data = corpus(tmp_path / "data")
    runner(made, tmp_path / "whole", data).run()
    for until in (5, 6, 9):
        runner(made, tmp_path / "cut", data).run(until)
    whole, cut = (final_tensors(runner(made, tmp_path / n, data).session.model)[0] for n in ("whole", "cut"))
    for name, value in whole.items():
        np.testing.assert_array_equal(value.read(), cut[name].read(), err_msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"lora": {"rank": 4}, "rounding": {"mlp.*": "int4-g32"}},
            "lora goes neither with rounding nor with mtp",
        ),
        ({"lora": {"ranks": 4}}, "lora has an unknown key 'ranks'. did you mean 'rank'?"),
        ({"warmup_from": 2.0}, "warmup_from = 2.0"),
        ({"decay": {"kind": "exponential", "steps": 2}}, "never reaches decay.final = 0"),
        ({"rounding": {"mlp.*": "ternary-b0x128"}}, "ternary"),
        ({"lora": {"rank": -4}}, "lora rank = -4 is outside 1 to 4096"),
        ({"buckets": [-8, 32]}, "buckets = [-8, 32] do not rise from above 0"),
        ({"buckets": [32, 16]}, "buckets = [32, 16] do not rise from above 0"),
        ({"context": 1}, "context = 1: one token has no next one to learn"),
    ],
)
def test_wrong_stages_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe(stage(**changed))
    assert message in str(refused.value)


def chats(folder: Path) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"here: {n}"},
            ]
        }
        for n in range(40)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "chat.jsonl"


@pytest.mark.parametrize("micro", [0, 64])
def test_validation_reads_the_same_tokens_with_any_number_of_processes(tmp_path: Path, micro: int) -> None:
    made = recipe(
        stage(batch_tokens=256, micro_tokens=micro),
        corpora={"text": {"paths": ["unused"], "holdout": 0.5}},
        validate=1,
    )
    data, read = {"text": corpus(tmp_path / "data")}, []
    for processes in (1, 2, 4):
        every = [sources(made, data, rank, processes)["stable"].held_out for rank in range(processes)]
        read.append(sorted(token for own in every for batch in own for token in batch.ids.tolist()))
    assert len(read[0]) == 8 * (micro or 256) and read[0] == read[1] == read[2]


def whole_recipe(folder: Path) -> dict:
    (folder / "text").mkdir()
    words = [f"line {n} of a text about {n * n} things" for n in range(2000)]
    for part in range(20):
        (folder / "text" / f"{part}.txt").write_text("\n".join(words[part * 100 : part * 100 + 100]))
    page = "<h1>A falcon</h1><p>A falcon is a bird that flies fast and sees far, day after day.</p>"
    (folder / "page.html").write_text(f"<html><body>{page}</body></html>")
    shape = {k: v for k, v in SHAPE.items() if k not in ("vocab_size", "bos_token_id", "eos_token_id")}
    return {
        "name": "all kinds",
        "output": "unused",
        "model": {"shape": {**shape, "max_position_embeddings": 512}},
        "tokenizer": {"vocab_size": 400, "corpora": ["text"]},
        "corpora": {
            "text": {"paths": [str(folder / "text")], "holdout": 0.1},
            "chat": {"kind": "chat", "paths": [str(chats(folder))]},
            "pages": {"kind": "questions", "paths": [str(folder / "page.html")]},
            "needles": {
                "kind": "needles",
                "made": {"haystack": "text", "documents": 20, "lengths": [300, 400]},
            },
            "copies": {"kind": "copies", "made": {"haystack": "text", "documents": 9, "lengths": [64]}},
        },
        "stages": [
            stage("a", context=512, batch_tokens=1024, micro_tokens=0, data={"text": 0.5, "needles": 0.5}),
            stage("b", context=512, batch_tokens=1024, micro_tokens=0, data={"chat": 0.5, "pages": 0.5}),
        ],
    }


def test_chats_questions_and_needles_are_packed_with_their_masks(tmp_path: Path) -> None:
    from minicpm4.text import load_tokenizer

    found = prepare(parse_recipe(whole_recipe(tmp_path)), tmp_path / "run", lambda line: None)
    own = load_tokenizer(found.tokenizer)

    def learnt(name: str, document: int) -> str:
        tokens, mask = found.data[name].read(document, 0, 1 << 20)
        assert mask is not None
        return own.decode(tokens[mask].tolist(), skip_special_tokens=False)

    assert learnt("chat", 7) == "here: 7<|im_end|>"
    assert learnt("pages", 0).startswith("A falcon is a bird") and len(found.data["pages"]) == 1
    assert len(found.data["needles"]) == 20 and found.data["needles"].whole
    for number in range(9):
        tokens, mask = found.data["copies"].read(number, 0, 99)
        half = len(tokens) // 2 + 1
        assert (tokens[1:half] == tokens[half:]).all() and mask is not None
        assert mask.sum() == half - 2 and mask[half + 1 :].all()


def test_what_is_packed_is_taken_by_the_same_recipe_alone(tmp_path: Path) -> None:
    table = whole_recipe(tmp_path)
    said: list[str] = []
    found = prepare(parse_recipe(table), tmp_path / "run", said.append)
    assert any("packing" in line for line in said)
    again: list[str] = []
    assert prepare(parse_recipe(table), tmp_path / "run", again.append).hashes() == found.hashes()
    assert not any("packing" in line for line in again)
    assert packed(parse_recipe(table), tmp_path / "run").keys() == found.data.keys()
    table["corpora"]["chat"]["max_tokens"] = 99  # what is there is of another recipe
    with pytest.raises(CheckpointError, match="chat holds a set made otherwise"):
        packed(parse_recipe(table), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpora": {"../text": {"paths": ["a"]}}}, "corpus '../text' cannot be a folder's name"),
        ({"output": ""}, "output is empty"),
        ({"validate": -1}, "validate = -1 is negative"),
        ({"model": {"shape": {**SHAPE, "tie_word_embedings": True}}}, "did you mean 'tie_word_embeddings'?"),
        (
            {"corpora": {"n": {"kind": "needles", "made": {**MADE, "queries": 2}}}},
            "2 of 1 needles cannot be asked for",
        ),
    ],
)
def test_wrong_recipes_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe(**changed)
    assert message in str(refused.value)


def test_needles_need_plain_text(tmp_path: Path) -> None:
    table = whole_recipe(tmp_path)
    table["corpora"]["needles"]["made"]["haystack"] = "chat"
    with pytest.raises(ConfigError, match="no plain text"):
        parse_recipe(table)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mtp": 1e308}, r"mtp = 1e\+308 is above 1e\+06"),
        ({"z_loss": 1e7}, r"z_loss = 10000000.0 is above 1e\+06"),
        ({"lora": {"alpha": 1e7}}, r"lora alpha = 10000000.0 is above 1e\+06"),
        ({"rate": 20.0}, r"stage 'stable': its rate times optimiser.weight_decay is 2: above 1 a step"),
    ],
)
def test_factors_that_no_training_takes_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(stage(**changed))
