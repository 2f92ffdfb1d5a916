"""One object reads the text of any checkpoint: folder, .gguf file, folder with one .gguf file, name."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError, TextError
from minicpm4.model.source import open_model, open_text
from minicpm4.text.model_text import ModelText
from minicpm4.zoo import resolve
from tests.fixtures.random_checkpoint import make_checkpoint

NAME = "smollm2-135m-instruct"
TURN = [{"role": "user", "content": "Hi"}]


def test_every_way_to_name_a_model_leads_to_the_same_text(tmp_path: Path) -> None:
    file = resolve(NAME)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "m.gguf").symlink_to(file)
    texts = [open_text(NAME), open_text(file), open_text(tmp_path / "one"), open_model(NAME).text()]
    chats = [text.encode_chat(TURN) for text in texts]
    assert chats[0] and chats == [chats[0]] * 4
    assert len({text.fingerprint for text in texts}) == 1


def test_a_written_tokenizer_has_the_fingerprint_of_what_it_was_written_from(tmp_path: Path) -> None:
    text = open_text(NAME)
    for name, content in text.files().items():
        (tmp_path / name).write_bytes(content)
    assert ModelText(tmp_path).fingerprint == text.fingerprint
    assert ModelText(tmp_path).encode_chat(TURN) == text.encode_chat(TURN)


def test_a_folder_with_two_gguf_files_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 models in \.gguf files.*a\.gguf"):
        open_text(tmp_path)


def test_what_is_missing_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", model_type="llama", vocab_size=300)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    text = open_model(folder).text()
    assert not text.has_chat_template and text.end_ids == ()
    for ask in (
        lambda: text.encode("a"),
        text.files,
        lambda: text.fingerprint,
        lambda: text.encode_chat(TURN),
    ):
        with pytest.raises(TextError, match="holds no tokenizer"):
            ask()
