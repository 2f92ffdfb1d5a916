"""One object reads the text of any checkpoint: folder, .gguf file, folder with one .gguf file, name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError, TextError
from minicpm4.model.source import open_model, open_text
from minicpm4.text.model_text import ModelText
from minicpm4.zoo import resolve
from tests.fixtures.byte_tokenizer import write_tokenizer
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.text.vocabularies import train_sentencepiece

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


@pytest.mark.parametrize(
    ("given", "grown", "ask"),
    [
        ("tokenizer.json", "tokenizer.json", lambda text: text.fingerprint),
        ("vocab.json", "merges.txt", lambda text: text.fingerprint),
        ("tokenizer.json", "tokenizer.model", lambda text: text.files()),
        ("tokenizer.model", "tokenizer.model", lambda text: text.gguf_keys(1000)),
    ],
)
def test_files_of_over_256_mib_are_refused_unread_after_opening_too(
    tmp_path: Path, given: str, grown: str, ask: Callable[[ModelText], object]
) -> None:
    """Files are read anew for exports and fingerprints, others than those that a text is encoded with too."""
    if given == "tokenizer.json":
        write_tokenizer(tmp_path, 300)
    elif given == "tokenizer.model":
        (tmp_path / given).write_bytes(train_sentencepiece())
    else:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (tmp_path / given).write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("")
    text = ModelText(tmp_path)
    with (tmp_path / grown).open("ab") as file:
        file.truncate((256 << 20) + 1)  # takes no room
    with pytest.raises(TextError, match=rf"{grown} has 268435457 bytes, the limit is 268435456"):
        ask(text)
