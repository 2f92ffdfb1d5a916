"""``minicpm4 data`` from texts to packed sets and back; wrong input is one line and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minicpm4.data import packer
from minicpm4.data.corpora import Corpus, Made
from minicpm4.data.shards import ShardSet
from minicpm4.model.source import open_text
from minicpm4.text import load_tokenizer
from tests.cli.conftest import Result
from tests.data.sets import TEXTS, tokenizer_folder
from tests.fixtures.byte_tokenizer import write_tokenizer

Run = Callable[..., Result]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the fox"}]


@pytest.fixture
def data(tmp_path: Path, minicpm: Run) -> Callable[..., Result]:
    """Run ``minicpm4 data`` with the tokenizer of the tests in ``tok``, the output in ``out``."""

    def run(command: str, *args: object, tokenizer: object = tokenizer_folder(), **options: object) -> Result:
        given = {
            "tokenizer": tokenizer,
            **({"output": tmp_path / "out"} if command != "inspect" else {}),
            **options,
        }
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        return minicpm("data", command, *map(str, args), *words)

    return run


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Five files: one is empty, one is there twice."""
    folder = tmp_path / "books"
    folder.mkdir()
    for i, text in enumerate([*TEXTS[:3], "", TEXTS[0]]):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def chats(folder: Path, *lines: Any) -> Path:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_tokenizer_is_trained_and_tried(tmp_path: Path, minicpm: Run, books: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"body": TEXTS[3]}) + "\n")
    given = [f"text:{books}", f"jsonl:{tmp_path}/more.jsonl", "--column", "body", "--vocab-size", "400"]
    result = minicpm("data", "tokenizer", *given, "--output", str(tmp_path / "tok"))
    assert result.code == 0 and "400 tokens, trained on 4 texts; " in result.out, result.err
    assert load_tokenizer(tmp_path / "tok").vocab_size == 400
    again = minicpm("data", "tokenizer", *given, "--output", str(tmp_path / "tok"))
    assert again.code == 2 and "tok has a tokenizer already" in again.err


def test_texts_are_packed_once(tmp_path: Path, data: Run, books: Path) -> None:
    result = data("pack", books)
    found = ShardSet(tmp_path / "out")
    assert result.code == 0 and len(found) == 4 and f"{found.num_tokens:,}" in result.out
    assert "left out 1: files with nothing to read" in result.out and f"set {found.hash}" in result.out
    size = sum(len(text.encode()) for text in [*TEXTS[:3], TEXTS[0]])
    assert f"{size / found.num_tokens:.2f}" in result.out
    assert "which was there already" in data("pack", books).out
    other = data("pack", books, column="body")
    assert other.code == 2 and "holds a set made otherwise. remove it, or give another folder" in other.err


def test_distinct_texts_are_another_set(tmp_path: Path, data: Run, books: Path) -> None:
    result = data("pack", books, "--distinct")
    assert result.code == 0 and "left out 1: the same as one before" in result.out
    one = ShardSet(tmp_path / "out")
    data("pack", books, output=tmp_path / "all")
    assert len(one) == 3 and one.manifest["filter"] != ShardSet(tmp_path / "all").manifest["filter"]


def test_held_out_texts_and_the_others_are_all(tmp_path: Path, data: Run) -> None:
    lines = [{"text": f"text {i}"} for i in range(60)]
    file = chats(tmp_path, *lines)
    for name, more in (("rest", []), ("held", ["--held-out"])):
        result = data("pack", file, *more, kind="jsonl", holdout=0.3, output=tmp_path / name)
        assert result.code == 0
    rest, held = ShardSet(tmp_path / "rest"), ShardSet(tmp_path / "held")
    assert len(rest) + len(held) == 60 and 8 <= len(held) <= 28
    assert rest.manifest["filter"] != held.manifest["filter"]


def test_the_command_and_a_recipe_pack_the_same_sets(tmp_path: Path, data: Run, books: Path) -> None:
    made = Made(haystack="books", documents=5, lengths=(300, 500), needles=2, seed=3)
    corpora = {
        "books": Corpus(paths=(str(books),)),
        "chat": Corpus(kind="chat", paths=(str(chats(tmp_path, {"messages": TURNS})),), max_tokens=40),
        "needles": Corpus(kind="needles", made=made),
    }
    files = {name: corpus.files() for name, corpus in corpora.items()}
    found = packer.pack_all(corpora, files, open_text(tokenizer_folder()), tmp_path, lambda line: None)
    own = tmp_path / "own" / "books"
    data("pack", books, "--distinct", output=own)
    data("pack", *files["chat"], kind="chat", max_tokens=40, output=tmp_path / "own" / "chat")
    asked = {"documents": 5, "lengths": "300,500", "needles": 2, "seed": 3}
    data("needles", own, output=tmp_path / "own" / "needles", **asked)
    assert {name: ShardSet(tmp_path / "own" / name).hash for name in corpora} == {
        name: one.hash for name, one in found.items()
    }


def test_an_interrupted_pack_goes_on(
    tmp_path: Path, data: Run, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packer.texts

    def cut(*args: Any) -> Any:
        yield from islice(whole(*args), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(packer, "write_shards", partial(packer.write_shards, shard_tokens=10))
    monkeypatch.setattr("minicpm4.data.packing.BATCH_CHARS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(packer, "texts", cut)
        result = data("pack", books)
    assert result.code == 130 and "the same command goes on" in result.err
    assert (tmp_path / "out" / "00001.json").is_file()
    assert data("pack", books).code == 0
    assert data("pack", books, output=tmp_path / "straight").code == 0
    assert ShardSet(tmp_path / "out").hash == ShardSet(tmp_path / "straight").hash


def test_chats_are_packed_whole_and_shown_with_what_is_learnt(tmp_path: Path, data: Run) -> None:
    file = chats(tmp_path, {"messages": TURNS, "id": 1}, {"messages": TURNS[:1]}, {"messages": TURNS * 9})
    result = data("pack", file, kind="chat", max_tokens=40)
    assert result.code == 0 and "left out 1: it has no answer" in result.out
    assert "note: columns of the chats that are not read: 'id'" in result.out
    found = ShardSet(tmp_path / "out")
    assert found.whole and found.lengths.max() <= 40 and len(found) == 2
    shown = data("inspect", tmp_path / "out")
    told = [line for line in result.out.splitlines() if line.startswith(("left out", "note:"))]
    assert len(told) == 2 and [line for line in shown.out.splitlines() if line in told] == told
    assert "note: columns of the chats" in data("pack", file, kind="chat", max_tokens=40).out
    (tmp_path / "out" / "notes.json").write_text('{"notes": ["\\u001b[2J"]}')
    assert ShardSet(tmp_path / "out").hash == found.hash
    assert "\x1b" not in data("inspect", tmp_path / "out").out
    (tmp_path / "out" / "notes.json").write_text('{"notes": [1]}')
    assert "holds no notes" in data("inspect", tmp_path / "out").err
    (tmp_path / "out" / "notes.json").unlink()
    assert shown.code == 0 and "learnt tokens" in shown.out
    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦the fox<|im_end|>⟧" in shown.out


def test_inspect_counts_lengths_and_draws_them(tmp_path: Path, data: Run, books: Path) -> None:
    data("pack", books)
    found = ShardSet(tmp_path / "out")
    result = data("inspect", tmp_path / "out", "--verify", document=2, tokens=10, plot=tmp_path / "l.svg")
    assert result.code == 0 and "as they were written" in result.out
    assert f"{len(found):,}" in result.out and "100.0%" not in result.out
    lengths = int(found.lengths[2])
    assert (
        f"document 2: {lengths:,} tokens\n<s>emo" in result.out
        and f"… {lengths - 10:,} tokens …" in result.out
    )
    assert (tmp_path / "l.svg").read_text().startswith("<svg")
    (tmp_path / "out" / "00000.ends").write_bytes(b"")
    assert "00000.ends has 0 bytes" in data("inspect", tmp_path / "out").err


def test_needles_are_hidden_in_a_packed_set(tmp_path: Path, data: Run, books: Path) -> None:
    data("pack", books)
    given: dict[str, object] = {"documents": 5, "lengths": "300,500", "needles": 2, "queries": 2}
    result = data("needles", tmp_path / "out", output=tmp_path / "needles", **given)
    found = ShardSet(tmp_path / "needles")
    assert result.code == 0 and len(found) == 5 and found.whole and found.lengths.max() <= 500
    shown = data("inspect", tmp_path / "needles").out
    assert shown.count("⟦") == 2 and "What is the code of the " in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("pack BOOKS --kind txt", "corpus kind 'txt' is unknown. did you mean 'text'?"),
        ("pack BOOKS/none", "none is neither a file nor a folder. check its name"),
        ("pack BOOKS --kind parquet", "has no files of kind 'parquet'. it looks for .parquet"),
        ("pack npm:x --kind package", "'npm:x' names no package. write apt:NAME or pip:NAME==VERSION"),
        ("pack BOOKS/bad.jsonl --kind jsonl --strict", "bad.jsonl, line 2 is not JSON"),
        ("pack BOOKS/bad.jsonl --kind jsonl --column x", "bad.jsonl, line 1 has no 'x', but 'text'"),
        ("pack BOOKS/bad.jsonl --kind chat", "bad.jsonl, line 1 has no 'messages', but 'text'"),
        ("pack BOOKS --max-tokens 5", "--max-tokens is for chats"),
        ("pack BOOKS --kind chat --max-tokens -5", "--max-tokens -5 is outside 0 to"),
        ("pack BOOKS --kind chat --distinct", "--distinct is for texts. not for chats"),
        ("pack BOOKS --holdout 1", "--holdout 1 is not from 0 to below 1"),
        ("pack BOOKS --held-out", "--held-out needs --holdout"),
        ("pack BOOKS --tokenizer BOOKS", "books holds no tokenizer"),
        ("pack BOOKS --output BOOKS", "books is no packed set: it holds '0.txt'. give another folder"),
        ("pack BOOKS --output BOOKS/0.txt", "0.txt is not a folder"),
        ("tokenizer BOOKS --vocab-size 400", "is not KIND:PATH. as in text:book.txt"),
        ("tokenizer chat:BOOKS --vocab-size 400", "is of unknown kind 'chat'"),
        ("tokenizer text:BOOKS --vocab-size 40", "vocab_size = 40 is out of range"),
        ("tokenizer text:BOOKS/3.txt --vocab-size 400", "there is no text in what was given"),
        ("needles BOOKS --documents 5", "books/manifest.json"),
        ("needles BOOKS --documents 0", "--documents 0 is outside 1 to"),
        ("needles BOOKS --documents 5 --lengths 5", "--lengths 5 is outside 32 to"),
        ("inspect BOOKS", "books holds no packed set. minicpm4 data pack makes one"),
        ("inspect", "Missing argument 'FOLDER'"),
        ("inspect BOOKS --document 0", "--document needs --tokenizer"),
        ("inspect BOOKS --tokens 10", "--tokens needs --tokenizer"),
        ("insect", "No such command 'insect'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, minicpm: Run, books: Path, args: str, said: str) -> None:
    (books / "bad.jsonl").write_text('{"text": "good"}\n{"text": "cut\n')
    words = args.replace("BOOKS", str(books)).split()
    if "--output" not in words and words[0] in ("pack", "tokenizer", "needles"):
        words += ["--output", str(tmp_path / "out")]
    if "--tokenizer" not in words and words[0] in ("pack", "needles"):
        words += ["--tokenizer", str(tokenizer_folder())]
    result = minicpm("data", *words)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and said in result.err
    assert (
        not (tmp_path / "out" / "manifest.json").exists()
        and not (tmp_path / "out" / "tokenizer.json").exists()
    )


@pytest.mark.parametrize(("option", "said"), [("document=9", "--document 9 is outside 0 to 3"),
    ("tokens=1", "--tokens 1 is outside 2 to"), ("plot=x.png", "x.png does not end in .svg"),
    ("tokenizer=OTHER", "was packed with tokenizer")])  # fmt: skip
def test_wrong_options_of_inspect(tmp_path: Path, data: Run, books: Path, option: str, said: str) -> None:
    data("pack", books)
    write_tokenizer(tmp_path, 301)
    name, _, value = option.partition("=")
    result = data("inspect", tmp_path / "out", **{name: value.replace("OTHER", str(tmp_path))})
    assert result.code == 2 and said in result.err


def test_alone_it_lists_its_commands(minicpm: Run) -> None:
    result = minicpm("data")
    assert result.code == 0 and all(
        name in result.out for name in ("tokenizer", "pack", "needles", "inspect")
    )


@pytest.mark.skipif(
    not Path("/proc/self/mem").is_file(), reason="no file here that is there and cannot be read"
)
@pytest.mark.parametrize("kind", ["text", "jsonl", "chat", "parquet"])
def test_a_file_that_cannot_be_read_is_one_line(data: Run, kind: str) -> None:
    result = data("pack", "/proc/self/mem", kind=kind)
    assert result.code == 2 and "cannot read /proc/self/mem: Input/output error" in result.err


def test_a_page_that_cannot_be_read_is_one_line(tmp_path: Path, data: Run) -> None:
    if not Path("/proc/self/mem").is_file():
        pytest.skip("needs an unreadable file")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.html").symlink_to("/proc/self/mem")
    result = data("pack", tmp_path / "pages", kind="questions")
    assert result.code == 2 and "cannot read" in result.err and "Input/output error" in result.err
