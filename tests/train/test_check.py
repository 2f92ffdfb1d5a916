"""What cannot run is refused before step 0, all at once, and by a dry run in the same words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.cli import run
from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.text.model_text import ModelText
from minicpm4.train.check import Given, Start, check, start_of
from minicpm4.train.prepare import prepare
from minicpm4.train.recipe import Recipe, model_config
from minicpm4.zoo import resolve
from tests.fixtures.byte_tokenizer import write_tokenizer
from tests.train.runs import SHAPE, corpus, recipe, stage

GOOD = stage("good")
DENSE = {name: value for name, value in SHAPE.items() if name != "sparse_config"}
FAR = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
FAST = {"rope_type": "yarn", "factor": 8.0, "beta_fast": -1.0, "original_max_position_embeddings": 64}


def given(folder: Path, made: Recipe, **known: Any) -> Given:
    return Given(start=Start(config=model_config(made, 96, {})), run=folder / "run", **known)


def whole(folder: Path, lengths: list[int]) -> ShardSet:
    """A set of chats, which are never cut."""
    documents = [Document(tokens=np.arange(n) % 90) for n in lengths]
    return write_shards(folder, documents, vocab_size=96, about={"tokenizer": "t", "whole": True})


# Of a stage after a good one, what is wrong with it. Recipes that no run could ever take are refused when
# they are read (tests/train/test_stages.py).
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rounding": {"mpl.*": "ternary-g64"}}, "rounding pattern 'mpl.*' fits no matrix"),
    ({"rounding": {"mlp.*": "int4-g96"}}, "the 64 columns of model.layers.0.mlp.gate_proj do not fit"),
    ({"lora": {"targets": ["q_pro"]}}, "lora target 'q_pro' fits no matrix"),
    ({"context": 512}, "context = 512 exceeds the model's 128 positions"),
    ({"micro_tokens": 48}, "batch_tokens = 128 is not a multiple of 48 tokens on 1 process"),
    ({"rope_scaling": FAR}, "longrope has 1 factors, head_dim / 2 is 8"),
    ({"rope_scaling": {"rope_type": "linear", "facotr": 2.0}}, "did you mean 'factor'?"),
    ({"rope_scaling": FAST}, "rope_scaling.beta_fast = -1.0 is not positive"),
    ({"data": {"text": 1.0, "more": 0.001}}, "the share of more is less than one token of a batch of 64"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG)
def test_a_later_stage_that_cannot_run_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    text = {"paths": ["unused"]}
    made = recipe(GOOD, stage("second", **changed), corpora={"text": text, "more": text})
    with pytest.raises(ConfigError, match="stage 'second': ") as refused:
        check(made, given(tmp_path, made))
    assert said in str(refused.value)


def test_sparse_attention_needs_its_settings(tmp_path: Path) -> None:
    made = recipe(GOOD, stage("second", attention="sparse"), model={"shape": DENSE})
    with pytest.raises(ConfigError, match="stage 'second': attention = 'sparse', yet the model has no"):
        check(made, given(tmp_path, made))


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    made = recipe(stage("a", context=512), GOOD, stage("b", lora={"targets": ["x"]}), stage("c", context=99))
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="3 things keep this recipe from running: ") as refused:
        check(made, given(tmp_path, made))
    found = str(refused.value)
    assert all(text in found for text in ("(1) cannot write to", "(2) stage 'a': ", "(3) stage 'b': lora"))


def test_a_stage_is_looked_at_as_the_ones_before_it_leave_the_model(tmp_path: Path) -> None:
    made = recipe(stage("longer", max_position_embeddings=512), stage("after", context=512, batch_tokens=512))
    assert check(made, given(tmp_path, made)) == [
        "stage after: a forward pass of 64 tokens cuts documents of 512"
    ]


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([99], "no document of text fits a context of 64 tokens"),
        ([], "text has no documents"),
        ([50, 60], "a batch of 32 tokens cannot hold a piece of 60"),
    ],
)
def test_sets_that_give_no_batches_are_refused(tmp_path: Path, lengths: list[int], said: str) -> None:
    made = recipe(stage(micro_tokens=32))
    with pytest.raises(ConfigError, match="stage 'stable': ") as refused:
        check(made, given(tmp_path, made, data={"text": whole(tmp_path / "set", lengths)}))
    assert said in str(refused.value)


def test_what_the_context_leaves_out_is_told_and_what_is_read_again_and_again(tmp_path: Path) -> None:
    made = recipe(stage(context=40))
    data = {"text": whole(tmp_path / "set", [30, 40, 41, 90])}
    assert check(made, given(tmp_path, made, data=data)) == [
        "stage stable: 2 documents of text are longer than its context of 40: left out",
        "stage stable: a step of 128 tokens reads all of text 1.83 times",
    ]
    plain = {"text": corpus(tmp_path / "plain")}
    assert check(made, given(tmp_path, made, data=plain)) == []


def test_needles_that_never_fit_are_refused_before_they_are_made(tmp_path: Path) -> None:
    corpora = {
        "text": {"paths": ["unused"]},
        "far": {"kind": "needles", "made": {"haystack": "text", "documents": 9, "lengths": [96, 256]}},
    }
    for context, said in ((64, "no document of far fits"), (99, "cannot hold a piece of 96")):
        made = recipe(stage(context=context, data={"far": 1.0}), corpora=corpora)
        with pytest.raises(ConfigError, match=said):
            check(made, given(tmp_path, made))


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    made = recipe()
    start = Start(config=model_config(made, 96, {}), tokens=97)
    with pytest.raises(ConfigError, match="the tokenizer has 97 tokens, the model a vocabulary of 96"):
        check(made, Given(start=start, run=tmp_path))


def test_chats_need_a_template_before_anything_is_packed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = ModelText(tmp_path)
    for kind in ("chat", "questions"):
        made = recipe(corpora={"text": {"kind": kind, "paths": ["unused"]}})
        start = Start(config=model_config(made, 300, {}), text=text)
        with pytest.raises(ConfigError, match=f"no chat template, which kind {kind!r} needs"):
            check(made, Given(start=start, run=tmp_path / "run"))


def test_a_template_that_writes_no_end_token_is_told_of_before_anything_is_packed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    said = (
        "corpus text: the chat template writes no end token after an answer: nothing teaches answers to end"
    )
    for template, notes in ((settings["chat_template"], []), (PLAIN_TURNS, [said])):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
        for kind in ("chat", "questions", "text"):
            made = recipe(corpora={"text": {"kind": kind, "paths": ["unused"]}})
            start = Start(config=model_config(made, 300, {}), text=ModelText(tmp_path))
            told = check(made, Given(start=start, run=tmp_path / "run"))
            assert told == (notes if kind != "text" else [])


PLAIN_TURNS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_packed_set_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    made = recipe(corpora={"text": {"kind": "shards", "paths": [str(tmp_path / "set")]}})
    start = Start(config=model_config(made, 300, {}), text=ModelText(tmp_path))
    with pytest.raises(ConfigError, match="set was packed with tokenizer t, the model's is"):
        check(made, Given(start=start, run=tmp_path / "run", data={"text": corpus(tmp_path / "set")}))


@pytest.mark.parametrize(
    ("kind", "name", "value"), [("llama", "scale_emb", 12.0), ("qwen2", "attention_bias", False)]
)
def test_what_a_model_type_would_not_take_is_refused(kind: str, name: str, value: Any) -> None:
    plain = {n: v for n, v in DENSE.items() if not n.startswith(("scale", "dim"))}
    made = recipe(model={"shape": {**plain, "model_type": kind, name: value}})
    with pytest.raises(ConfigError, match=f"{name} = {value} means nothing to model type '{kind}'"):
        model_config(made, 96, {})
    assert model_config(recipe(model={"shape": {**plain, "model_type": kind}}), 96, {}).model_type == kind


def test_validation_of_nothing_is_told(tmp_path: Path) -> None:
    made = recipe(validate=5)
    assert check(made, given(tmp_path, made)) == [
        "validate = 5, yet no corpus holds anything out: nothing is looked at"
    ]


def test_a_folder_with_one_gguf_file_is_a_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "m.gguf").symlink_to(resolve("smollm2-135m-instruct"))
    (tmp_path / "text.txt").write_text("Alpha beta gamma. " * 50)
    corpora = {"text": {"paths": [str(tmp_path / "text.txt")]}}
    made = recipe(model={"start": str(tmp_path / "one")}, tokenizer={}, corpora=corpora)
    start = start_of(made)
    assert start.missing is None and start.config is not None and start.config.vocab_size == start.tokens
    found = prepare(made, tmp_path / "run")
    assert found.vocab_size == start.tokens
    notes = check(made, Given(start=start, run=tmp_path / "run", data=found.data))
    assert not any("left out" in note for note in notes)


def test_where_the_model_goes_is_looked_at_before_it_is_made(tmp_path: Path) -> None:
    made = recipe()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").touch()
    (tmp_path / "file").touch()
    for place, said in (("full", "holds weights already"), ("file/model", "Not a directory")):
        with pytest.raises(CheckpointError, match=said):
            check(made, given(tmp_path, made, export=tmp_path / place))
    assert check(made, given(tmp_path, made, export=tmp_path / "new" / "model")) == []
    assert not (tmp_path / "new").exists()


def test_what_is_in_the_way_in_the_runs_folder_is_found_before_anything_is_made(tmp_path: Path) -> None:
    made = recipe()
    for name in ("metrics.jsonl", "loss.svg", "peak.json", ".lock"):
        (tmp_path / "run" / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{name} is a folder, where a run writes a file"):
            check(made, given(tmp_path, made))
        (tmp_path / "run" / name).rmdir()
    for name in ("data", "tokenizer"):
        (tmp_path / "run" / name).touch()
        with pytest.raises(ConfigError, match=f"{name} is no folder, where a run makes one"):
            check(made, given(tmp_path, made))
        (tmp_path / "run" / name).unlink()


def write(folder: Path, **changed: Any) -> str:
    """A recipe in a file, its second stage ``changed``."""
    (folder / "text.txt").write_text("Alpha beta gamma. " * 50)
    table = {
        "name": "t",
        "output": str(folder / "run"),
        "model": {"shape": {k: v for k, v in DENSE.items() if k != "vocab_size"}},
        "tokenizer": {"vocab_size": 320, "corpora": ["text"]},
        "corpora": {"text": {"paths": [str(folder / "text.txt")]}},
        "stages": [GOOD | {"steps": 1}, stage("second", **changed) | {"steps": 1}],
    }
    (folder / "r.toml").write_text("\n".join(f"{name} = {_toml(value)}" for name, value in table.items()))
    return str(folder / "r.toml")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora": {"rank": -4}}, "lora rank = -4 is outside 1 to 4096"),
        ({"attention": "sparse"}, "stage 'second': attention = 'sparse', yet the model has no sparse_config"),
        ({"rounding": {"mpl.*": "int4-g32"}}, "stage 'second': rounding pattern 'mpl.*' fits no matrix"),
        ({"buckets": [-8, 32]}, "stage 'second': buckets = [-8, 32] do not rise from above 0"),
        ({"micro_tokens": 48}, "stage 'second': batch_tokens = 128 is not a multiple of 48 tokens"),
    ],
)
def test_a_run_and_a_dry_run_refuse_in_the_same_words_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], said: str
) -> None:
    pytest.importorskip("torch")
    file = write(tmp_path, **changed)
    told = []
    for option in ([], ["--dry-run"]):
        assert run(["train", file, *option]) == 2
        told.append(capsys.readouterr())
    assert told[0] == told[1] and said in told[0].err and not (tmp_path / "run").exists()


# A recipe's line, what stands there instead, and what is said of it.
HOSTILE = [
    ('output = "', 'output = "a\\u0000b', "holds a NUL character"),
    ('output = "', 'output = "/proc/x', "cannot write to /proc/x"),
    ('name = "second"', 'name = ""', "a stage has an empty name. name it after what it does"),
    ("name = ", "seed = " + "9" * 5000 + "\nname = ", "holds a number of too many digits"),
    ("name = ", "seed = 0x" + "f" * 5000 + "\nname = ", "seed = an integer of 20000 bits is out of range"),
    ("rate = 0.01", "rate = 1" + "0" * 400, "rate = 1"),
    ("hidden_size = 64", "hidden_size = 1" + "0" * 400, "config hidden_size = 1"),
    ("hidden_size = 64", "hidden_size = 64, rope_parameters = [1]", "rope_parameters = [1] is not a table"),
    ("hidden_size = 64", "hidden_size = 64, architectures = 5", "architectures = 5 is not a list of names"),
    ("hidden_size = 64", 'hidden_size = 64, model_type = ["minicpm"]', "model_type = ['minicpm'] is not a"),
]


@pytest.mark.parametrize(("line", "instead", "said"), HOSTILE)
def test_values_that_no_setting_takes_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, instead: str, said: str
) -> None:
    pytest.importorskip("torch")
    file = Path(write(tmp_path))
    text = re.sub(r'"(\w+)" = ', r"\1 = ", file.read_text())
    before, found, after = text.partition(line)
    assert found
    file.write_text(before + instead + after)
    told = []
    for option in ([], ["--dry-run"]):
        assert run(["train", str(file), *option]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1] and said in told[0]


def both(folder: Path, file: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a dry run and a run say last, when both are refused."""
    told = []
    for option in (["--dry-run"], []):
        assert run(["train", file, *option]) == 2
        told.append(capsys.readouterr().err.splitlines()[-1])
    return told


@pytest.mark.parametrize(("share", "said"), [(1e-9, "holds out none of its 1"), (1 - 1e-9, "all of its 1")])
def test_a_share_that_leaves_a_side_empty_is_refused_once_it_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, said: str
) -> None:
    pytest.importorskip("torch")
    file = Path(write(tmp_path))
    file.write_text(file.read_text().replace('{"paths" =', f'{{"holdout" = {share!r}, "paths" ='))
    assert run(["train", str(file), "--dry-run"]) == 0  # nobody can know yet
    assert run(["train", str(file)]) == 2
    capsys.readouterr()
    told = both(tmp_path, str(file), capsys)
    assert told[0] == told[1] and said in told[0]


def test_data_that_changed_under_a_run_is_refused_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    file = write(tmp_path)
    assert run(["train", file, "--until", "1"]) == 0
    assert run(["train", file, "--dry-run"]) == 0
    (tmp_path / "text.txt").write_text("Other words. " * 50)
    capsys.readouterr()
    told = both(tmp_path, file, capsys)
    assert told[0] == told[1] and "holds a set made otherwise. remove it" in told[0]
    (tmp_path / "text.txt").unlink()
    assert run(["train", file, "--dry-run"]) == 0  # without the files nothing can be said


def test_a_stage_that_is_mended_keeps_the_work_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    assert run(["train", write(tmp_path), "--until", "1"]) == 0
    assert run(["train", write(tmp_path, rounding={"mpl.*": "int4-g32"})]) == 2
    assert run(["train", write(tmp_path, rounding={"mlp.*": "int4-g32"})]) == 0
    assert "2 of 2 steps done" in capsys.readouterr().err
    assert (tmp_path / "run" / "step-000000001").is_dir()


def test_a_dry_run_says_what_another_recipe_would_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    assert run(["train", write(tmp_path, rate=0.01)]) == 0
    told = []
    for option in ([], ["--dry-run"]):
        assert run(["train", write(tmp_path, rate=0.02), *option]) == 2
        told.append(capsys.readouterr().err.splitlines()[-1])
    assert told[0] == told[1] and "(stages[1].rate: 0.01 -> 0.02)" in told[0]
    shutil.rmtree(tmp_path / "run" / "step-000000002")  # then its second stage has not begun
    assert run(["train", write(tmp_path, rate=0.02)]) == 0


def test_gpus_that_are_not_asked_for_are_as_many_as_divide_the_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = {**DENSE, "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 30000}
    del big["bos_token_id"], big["eos_token_id"]
    file = Path(write(tmp_path, batch_tokens=96, micro_tokens=0, context=16))
    text = file.read_text().replace(_toml({k: v for k, v in DENSE.items() if k != "vocab_size"}), _toml(big))
    file.write_text(text)
    assert run(["train", str(file), "--dry-run", "--gpu-memory", "80"]) == 0
    assert "assumed, not measured: 2 GPUs" in capsys.readouterr().out
    assert run(["train", str(file), "--dry-run", "--gpus", "7"]) == 2
    assert "batch_tokens = 96 is not a multiple of 13 tokens on 7 processes" in capsys.readouterr().err
