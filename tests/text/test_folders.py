"""Every file of a folder that says how text is read has its effect; what is written says the same alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from minicpm4.data.tokenizer import take_tokenizer, train_tokenizer
from minicpm4.errors import TextError
from minicpm4.text import load_chat_template, load_tokenizer
from minicpm4.text.model_text import ModelText, tokenizer_files
from tests.fixtures.byte_tokenizer import BOS, EOS, IM_END, IM_START, write_tokenizer

USER = [{"role": "user", "content": "x"}]
LLAMA = {"tokenizer_class": "LlamaTokenizerFast"}
BOTH = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def settle(folder: Path, **settings: Any) -> None:
    """A byte-level tokenizer in ``folder`` with these settings alone."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, 300, bos=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("settings", "ends", "text"),
    [
        ({}, (IM_END,), "<s>x<|im_end|>"),
        ({"bos_token": "<|im_start|>", "eos_token": "</s>"}, (IM_END,), "<s>x<|im_end|>"),
        ({"eos_token": "</s>", "added_tokens_decoder": {}}, (EOS,), "x</s>"),  # newer than the map
    ],
)
def test_the_map_of_special_tokens(tmp_path: Path, settings: Any, ends: Any, text: str) -> None:
    settle(tmp_path, chat_template=BOTH, **settings)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    write(
        tmp_path,
        "special_tokens_map.json",
        {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", **flags}},
    )
    assert load_tokenizer(tmp_path).eos_token_ids == ends
    assert load_chat_template(tmp_path).render(USER) == text


@pytest.mark.parametrize(
    ("kind", "text"), [("LlamaTokenizer", "<s>x</s>"), ("Qwen2TokenizerFast", "x<|endoftext|>")]
)
def test_a_class_has_special_tokens_of_its_own(tmp_path: Path, kind: str, text: str) -> None:
    settle(tmp_path, chat_template=BOTH, tokenizer_class=kind)
    assert load_chat_template(tmp_path).render(USER) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_special_tokens": {"image_token": "<img>", "start": {"content": "<go>"}}},
        {"model_specific_special_tokens": {"image_token": "<img>", "start": "<go>"}},
        {"image_token": "<img>", "model_specific_special_tokens": {"start": "<go>", "image_token": "<s>"}},
    ],
)
def test_roles_of_a_models_own_reach_templates_and_are_special(tmp_path: Path, settings: Any) -> None:
    settle(tmp_path, chat_template="{{ image_token }}{{ start }}{{ messages[0].content }}", **settings)
    assert load_chat_template(tmp_path).render(USER) == "<img><go>x"
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<img>a<go>") == [300, ord("a"), 301]
    assert tokenizer.decode([300, ord("a"), 301]) == "a"


def test_templates_of_every_place_are_taken_along(tmp_path: Path) -> None:
    settle(tmp_path / "a", eos_token="</s>")
    write(tmp_path / "a", "chat_template.json", {"chat_template": "json"})
    write(tmp_path / "a", "additional_chat_templates/tool_use.jinja", "tools {{ tools | length }}")
    take_tokenizer(tmp_path / "a", tmp_path / "b")
    for name in ("a", "b"):
        template = load_chat_template(tmp_path / name)
        assert template.sources == {"default": "json", "tool_use": "tools {{ tools | length }}"}
        assert template.render(USER, tools=[{"name": "f"}]) == "tools 1"
    assert tokenizer_files(tmp_path / "a")[0].keys() == {
        "generation_config.json",
        "tokenizer.json",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer_config.json",
    }


def test_added_tokens_get_the_flags_of_the_settings(tmp_path: Path) -> None:
    entry = {"content": "<|im_end|>", "lstrip": True, "special": True}
    settle(tmp_path, added_tokens_decoder={str(IM_END): entry}, pad_token="[PAD]")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a  <|im_end|>") == [ord("a"), IM_END]
    assert tokenizer.encode("[PAD]") == [300]  # a new token, as in transformers
    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    assert len(load_tokenizer(tmp_path).encode("[PAD]")) == 5  # the model has no row for it


def test_added_tokens_with_another_id_are_refused(tmp_path: Path) -> None:
    for token_id, place in (("5", "has it at 259"), ("700", "has it at 259")):
        settle(tmp_path, added_tokens_decoder={token_id: {"content": "<|im_end|>"}})
        with pytest.raises(TextError, match=rf"'<\|im_end\|>' has id {token_id}, tokenizer\.json {place}"):
            load_tokenizer(tmp_path)
    settle(tmp_path, added_tokens_decoder={"700": {"content": "<|new|>"}})
    with pytest.raises(TextError, match=r"'<\|new\|>' has id 700, tokenizer\.json lacks it"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_special_tokens": True}, "split_special_tokens, which is not supported"),
        ({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "has fast_tokenizer_files"),
        ({"extra_special_tokens": 3}, "extra_special_tokens is a int, not a list"),
        ({"model_specific_special_tokens": ["<x>"]}, "model_specific_special_tokens is a list, not a table"),
    ],
)
def test_what_has_no_effect_here_is_refused_by_name(tmp_path: Path, settings: Any, message: str) -> None:
    settle(tmp_path, **settings)
    with pytest.raises(TextError, match=message):
        load_tokenizer(tmp_path)


def test_another_format_of_mistrals_is_named(tmp_path: Path) -> None:
    write(tmp_path, "tekken.json", {})
    with pytest.raises(TextError, match=r"holds no tokenizer \(tekken\.json is a format of Mistral's own\)"):
        load_tokenizer(tmp_path)


def test_chance_is_left_out(tmp_path: Path) -> None:
    train_tokenizer(["the cat sat on the mat " * 50], 300, tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = load_tokenizer(tmp_path)
    assert len({tuple(tokenizer.encode("the cat sat on the mat")) for _ in range(20)}) == 1


def test_a_trained_tokenizer_puts_its_begin_token_for_everyone(tmp_path: Path) -> None:
    train_tokenizer(["the cat sat on the mat " * 50], 300, tmp_path)
    alone = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("cat", "", "été <|im_end|>"):
        assert alone.encode(text).ids == load_tokenizer(tmp_path).encode(text)
    assert alone.encode("cat").ids[0] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {**LLAMA, "bos_token": "<s>", "add_bos_token": True, "eos_token": "</s>", "add_eos_token": True},
        {"added_tokens_decoder": {str(IM_START): {"content": "<|im_start|>", "rstrip": True}}},
        {**LLAMA, "pad_token": "[PAD]", "bos_token": "<s>", "add_bos_token": True},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"additional_special_tokens": ["Ġaaaa"]},
    ],
)
def test_a_taken_tokenizer_json_says_alone_what_the_folder_said(tmp_path: Path, settings: Any) -> None:
    settle(tmp_path / "a", **settings)
    source = ModelText(tmp_path / "a")
    take_tokenizer(source, tmp_path / "b")
    take_tokenizer(ModelText(tmp_path / "b"), tmp_path / "c")
    alone = Backend.from_file(str(tmp_path / "b" / "tokenizer.json"))
    for text in ("ab", "<|im_start|>  user", "a[PAD]", "Ġaaaa x"):
        ids = source.tokenizer.encode(text)
        assert alone.encode(text).ids == ids == load_tokenizer(tmp_path / "b").encode(text)
    files = ModelText(tmp_path / "b").files()
    assert files == ModelText(tmp_path / "c").files()
    # Packed data is held to the fingerprint: it stays, until somebody changes the file.
    assert ModelText(tmp_path / "b").fingerprint == source.fingerprint
    (tmp_path / "b" / "tokenizer.json").write_bytes(files["tokenizer.json"] + b" ")
    assert ModelText(tmp_path / "b").fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "setting",
    [
        {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        },
        {"model": {"dropout": 0.5}},
    ],
)
def test_nothing_of_a_training_run_is_taken_along(tmp_path: Path, setting: Any) -> None:
    train_tokenizer(["the cat sat on the mat " * 50], 300, tmp_path / "a")
    file = tmp_path / "a" / "tokenizer.json"
    state = json.loads(file.read_text())
    model = state["model"] | setting.get("model", {})
    file.write_text(json.dumps(state | setting | {"model": model}))
    source = ModelText(tmp_path / "a")
    take_tokenizer(source, tmp_path / "b")
    alone = Backend.from_file(str(tmp_path / "b" / "tokenizer.json"))
    for _ in range(20):
        assert alone.encode("the cat sat on the mat").ids == source.tokenizer.encode("the cat sat on the mat")
    assert ModelText(tmp_path / "b").fingerprint == source.fingerprint


@pytest.mark.parametrize(
    "kind", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", None]
)
def test_whose_bos_a_setting_adds_beside_a_tokenizer_json(tmp_path: Path, kind: str | None) -> None:
    """Llama's classes did in transformers 4; no other class, in 4 or 5, nor the tokenizers library."""
    settle(tmp_path, tokenizer_class=kind, bos_token="<s>", add_bos_token=True)
    looks = kind == "LlamaTokenizerFast"
    assert load_tokenizer(tmp_path).encode("a") == [*([BOS] if looks else []), ord("a")]


def test_a_begin_token_of_settings_stands_alone(tmp_path: Path) -> None:
    """A Llama's that was given another one: its post-processor still has the old (transformers 4)."""
    write_tokenizer(tmp_path, 300)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<|im_start|>", "add_bos_token": True}
    write(tmp_path, "tokenizer_config.json", settings)
    assert load_tokenizer(tmp_path).encode("a") == [IM_START, ord("a")]


def test_bos_stays_where_it_was(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    assert load_tokenizer(tmp_path).encode("a") == [BOS, ord("a")]


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(("setting", "ids"), [({}, [97]), ({"add_prefix_space": True}, [32, 97])])
def test_a_space_before_texts_is_a_setting_of_these_classes(
    tmp_path: Path, kind: str, inner: bool, setting: Any, ids: list[int]
) -> None:
    settle(tmp_path, tokenizer_class=kind, **setting)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["pre_tokenizer"]["add_prefix_space"] = inner
    write(tmp_path, "tokenizer.json", state)
    assert load_tokenizer(tmp_path).encode("a") == ids


# As transformers 5.23 (PreTrainedTokenizerFast): what the vocabulary has of <x>, the other files, the ids of
# "a <x>b", and whether decoding leaves the token out.
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
LEFT = {"__type": "AddedToken", "content": "<x>", **FLAGS, "lstrip": True}
MERE = {"added_tokens_decoder": {"300": {"content": "<x>", **FLAGS, "special": False}}}
SPACED, JOINED = [97, 32, 300, 98], [97, 300, 98]
NAMED: list[tuple[str, dict[str, Any], list[int], bool]] = [
    ("absent", {"pad_token": "<x>"}, SPACED, True),
    ("absent", {"pad_token": LEFT}, JOINED, True),
    ("absent", {"extra_special_tokens": [LEFT]}, JOINED, True),
    ("absent", {"MAP": {"pad_token": {"content": "<x>", **FLAGS, "lstrip": True}}}, JOINED, True),
    ("absent", {"ADDED": {"<x>": 300}}, SPACED, False),
    ("absent", {"ADDED": {"<x>": 300}, "pad_token": "<x>"}, SPACED, True),
    ("absent", {**MERE, "additional_special_tokens": ["<x>"]}, SPACED, False),
    ("word", {"pad_token": LEFT}, JOINED, True),
    ("word", {"additional_special_tokens": ["<x>"]}, SPACED, True),
    ("added", {"pad_token": LEFT}, SPACED, True),
    ("added", {"additional_special_tokens": ["<x>"]}, SPACED, False),
    ("added", {"extra_special_tokens": [LEFT]}, SPACED, False),
    ("added", {"MAP": {"additional_special_tokens": ["<x>"]}}, SPACED, False),
    ("added", {"additional_special_tokens": ["<x>"], "tokenizer_class": "Qwen2Tokenizer"}, SPACED, True),
    ("added", {"image_token": "<x>"}, SPACED, True),
    ("special", MERE, SPACED, True),
    ("special", {"added_tokens_decoder": {"300": {"content": "<x>", "lstrip": True}}}, JOINED, True),
    ("special", {"ADDED": {"<x>": 300}}, SPACED, True),
]


@pytest.mark.parametrize(("state", "files", "ids", "left_out"), NAMED)
def test_which_file_has_the_word_on_a_tokens_flags(
    tmp_path: Path, state: str, files: dict[str, Any], ids: list[int], left_out: bool
) -> None:
    settings = dict(files)
    for key, name in (("MAP", "special_tokens_map.json"), ("ADDED", "added_tokens.json")):
        if key in settings:
            write(tmp_path, name, settings.pop(key))
    settle(tmp_path, **settings)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    if state != "absent":
        content["model"]["vocab"]["<x>"] = 300
    if state in ("added", "special"):
        entry = {"id": 300, "content": "<x>", **FLAGS, "special": state == "special"}
        content["added_tokens"].append(entry)
    write(tmp_path, "tokenizer.json", content)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a <x>b", add_special_tokens=False) == ids
    assert tokenizer.decode([97, 300, 98]) == ("ab" if left_out else "a<x>b")
