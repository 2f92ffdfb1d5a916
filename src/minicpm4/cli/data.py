"""``minicpm4 data``: tokenizers, packed training data, and what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import check_output, number, numbers
from minicpm4.cli.packed import PackProgress, print_document, print_lengths, print_summary, set_facts, size_of
from minicpm4.cli.terminal import print_facts
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError

if TYPE_CHECKING:
    from minicpm4.data.chat import ChatEncoder
    from minicpm4.data.packing import Counting
    from minicpm4.text import Tokenizer

SAMPLE_CHARS = 1 << 20  # of text that a new tokenizer is tried on
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it.")]
TokenizerFolder = Annotated[
    Path, typer.Option("--tokenizer", metavar="FOLDER", help="Folder of the model's tokenizer.")
]


def tokenizer(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND:PATH...",
            help="Texts to train on: text:FILE or text:FOLDER, likewise html, jsonl and parquet; "
            "package:apt:NAME or package:pip:NAME==VERSION.",
        ),
    ],
    *,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary.")],
    output: Output,
    column: Annotated[str, typer.Option(help="Where lines and rows keep their text.")] = "text",
) -> None:
    """Train a byte-level BPE tokenizer with ChatML, as small models use."""
    from minicpm4.data.packing import size_in_utf8
    from minicpm4.data.sources import distinct, files_of, texts
    from minicpm4.data.tokenizer import train_tokenizer
    from minicpm4.text import load_tokenizer

    _check_folder(output)
    require(not (output / "tokenizer.json").exists(), f"{output} has a tokenizer already", _ELSEWHERE)
    found = [(kind, files_of(kind, [path])) for kind, path in map(_source, sources)]
    sample = _Sample()
    with PackProgress("reading", sum(size_of(files) for _, files in found)) as progress:
        every = (text for kind, files in found for text in texts(kind, progress.files(files), column))
        train_tokenizer(sample.kept(distinct(every)), vocab_size, output)
    made = load_tokenizer(output)
    tokens, nbytes = sum(map(len, made.encode_many(sample.texts))), sum(map(size_in_utf8, sample.texts))
    print(
        f"{output}: {made.vocab_size:,} tokens, trained on {sample.count:,} texts; "
        f"{nbytes / tokens:.2f} bytes per token on the first {nbytes:,} bytes of them"
    )


def pack(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Files, folders of files, or packages by name."),
    ],
    *,
    tokenizer: TokenizerFolder,
    output: Output,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="What the paths hold: text, html, jsonl, parquet, package (apt:NAME or pip:NAME==VERSION), "
            "or chat (JSON lines of messages, of which only the assistant's words are learnt).",
        ),
    ] = "text",
    column: Annotated[
        str | None, typer.Option(help="Where lines and rows keep their text (text; of chats: messages).")
    ] = None,
    distinct: Annotated[
        bool, typer.Option("--distinct", help="Leave out texts that came before, white space aside.")
    ] = False,
    holdout: Annotated[
        float, typer.Option(help="Leave out this share of the texts, chosen by hashes of their words.")
    ] = 0.0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Pack the texts that --holdout leaves out, and no others.")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(help="Longer chats end after the last answer that fits; 0: any length.")
    ] = 0,
) -> None:
    """Encode documents and write them to shards, for a recipe's corpus of kind "shards".

    A run that was interrupted goes on after its last whole shard when the same command is given again.
    """
    from minicpm4.data.packing import Counting, chat_documents, text_documents
    from minicpm4.data.shards import write_shards
    from minicpm4.data.sources import conversations, files_of, filter_hash, hash_of, split
    from minicpm4.data.tokenizer import fingerprint
    from minicpm4.text import load_tokenizer

    chats = kind == "chat"
    require(chats or not max_tokens, "--max-tokens is for chats", "other documents are cut in training")
    require(not (chats and (distinct or holdout)), "--distinct and --holdout are for texts", "not for chats")
    require(0 <= holdout < 1, f"--holdout {holdout:g} is not from 0 to below 1")
    require(holdout > 0 or not held_out, "--held-out needs --holdout", "the share that is held out")
    number("--max-tokens", max_tokens, 1 << 30)
    _check_set_folder(output)
    own = load_tokenizer(tokenizer)
    files = files_of(kind, paths)
    column = column or ("messages" if chats else "text")
    about: dict[str, Any] = {"tokenizer": fingerprint(tokenizer), "source": hash_of(files)}
    taken = filter_hash(kind, distinct=distinct, share=holdout, held_out=held_out)
    about |= {"kind": kind, "column": column, "filter": taken}
    about |= {"whole": True, "max_tokens": max_tokens} if chats else {}
    with PackProgress("packing", size_of(files)) as progress:
        counting = Counting(progress.packed)
        if chats:
            told = conversations(progress.files(files), column)
            made = chat_documents(told, _encoder(own, tokenizer, max_tokens), counting)
        else:
            read = _texts(kind, files, column, distinct, counting, progress)
            kept = split(read, holdout, held_out=held_out) if holdout else read
            made = text_documents(kept, own, counting)
        found = write_shards(output, made, vocab_size=own.vocab_size, about=about)
    print_summary(found, counting, progress.seconds)


def needles(
    haystack: Annotated[
        Path, typer.Argument(metavar="HAYSTACK", help="A packed set: the text that needles are hidden in.")
    ],
    *,
    tokenizer: TokenizerFolder,
    output: Output,
    documents: Annotated[int, typer.Option(help="How many documents.")],
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Their lengths, in turn.")
    ] = "1024,2048,4096",
    facts: Annotated[int, typer.Option("--needles", help="Needles in each.")] = 1,
    queries: Annotated[int, typer.Option(help="How many of them are asked for.")] = 1,
    digits: Annotated[int, typer.Option(help="Digits of the values.")] = 4,
    seed: Annotated[int, typer.Option(help="Other seeds make other documents.")] = 0,
) -> None:
    """Make documents that teach retrieval: facts hidden in text, asked for at its end.

    Only the answers are learnt. Training takes such documents whole.
    """
    from minicpm4.data.needles import NeedleMaker
    from minicpm4.data.packing import Counting
    from minicpm4.data.shards import ShardSet, write_shards
    from minicpm4.data.tokenizer import fingerprint
    from minicpm4.text import load_tokenizer

    count, sizes = number("--documents", documents, 1 << 32, 1), numbers("--lengths", lengths, 1 << 24, 32)
    number("--seed", seed, (1 << 63) - 1)
    _check_set_folder(output)
    own, mark, hay = load_tokenizer(tokenizer), fingerprint(tokenizer), ShardSet(haystack)
    hay.check_tokenizer(mark)
    settings = {"needles": facts, "queries": queries, "digits": digits, "seed": seed}
    maker = NeedleMaker(own, hay, **settings)
    about: dict[str, Any] = {"tokenizer": mark, "source": hay.hash, "kind": "needles", "whole": True}
    about |= {"needles": {**settings, "documents": count, "lengths": sizes}}
    with PackProgress("hiding needles", count) as progress:
        counting = Counting(progress.packed)
        made = progress.each(maker.documents(count, sizes), counting)
        found = write_shards(output, made, vocab_size=own.vocab_size, about=about)
    print_summary(found, counting, progress.seconds)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A packed set.")],
    *,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Its tokenizer's folder, to show a document.")
    ] = None,
    document: Annotated[int, typer.Option(help="Which document to show, from 0 on.")] = 0,
    tokens: Annotated[int, typer.Option(help="At most so many of its tokens, from both ends.")] = 300,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw how long documents are.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the hashes of all files.")] = False,
) -> None:
    """Show what a packed set is made of, how long its documents are, and one of them.

    In the document, learnt tokens stand out (in a pipe: between ⟦ and ⟧) where not all are learnt.
    """
    from minicpm4.data.lengths import length_chart
    from minicpm4.data.shards import ShardSet

    known = (folder / "manifest.json").is_file()
    require(known, f"{folder} holds no packed set", "minicpm4 data pack makes one")
    found = ShardSet(folder)
    require(plot is None or len(found) > 0, f"{folder} has no documents to draw")
    check_output("--plot", plot)
    if verify:
        found.verify()
    print_facts(str(folder), [*set_facts(found), *([("files", "as they were written")] if verify else [])])
    print_lengths(found)
    if plot is not None:
        plot.write_text(length_chart(f"Documents of {folder.name}", found.lengths), encoding="utf-8")
        print(f"\n{plot} shows the lengths")
    if tokenizer is not None:
        print_document(found, tokenizer, document, number("--tokens", tokens, 1 << 20, 2))


commands = {"tokenizer": tokenizer, "pack": pack, "needles": needles, "inspect": inspect}

_ELSEWHERE = "give another folder as --output"


def _source(text: str) -> tuple[str, str]:
    """Kind and path of ``KIND:PATH``."""
    from minicpm4.data.sources import KINDS

    kinds = [kind for kind in KINDS if kind != "chat"]
    kind, _, path = text.partition(":")
    require(bool(path), f"{text!r} is not KIND:PATH", "as in text:book.txt or package:apt:sqlite3-doc")
    require(kind in kinds, f"{text!r} is of unknown kind {kind!r}", suggest(kind, kinds))
    return kind, path


def _check_folder(output: Path) -> None:
    require(not output.exists() or output.is_dir(), f"{output} is not a folder", _ELSEWHERE)


def _check_set_folder(output: Path) -> None:
    """Refuse a folder that holds anything but a packed set, whole or begun."""
    _check_folder(output)
    own = re.compile(r"\.?(manifest\.json|\d{5}\.(tokens|ends|learn|json))(\.\d+)?")
    other = [one.name for one in output.iterdir() if not own.fullmatch(one.name)] if output.is_dir() else []
    require(not other, f"{output} is no packed set: it holds {min(other, default='')!r}", _ELSEWHERE)


class _Sample:
    """The first of the texts that go by, and how many have."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.count = self._size = 0

    def kept(self, texts: Iterable[str]) -> Iterator[str]:
        """``texts``, of which there must be one. Raises ConfigError."""
        for text in texts:
            self.count += 1
            if self._size < SAMPLE_CHARS:
                self.texts.append(text)
                self._size += len(text)
            yield text
        require(self.count > 0, "there is no text in what was given", "a tokenizer is trained on text")


def _encoder(own: Tokenizer, folder: Path, max_tokens: int) -> ChatEncoder:
    from minicpm4.data.chat import ChatEncoder
    from minicpm4.text import load_chat_template

    template = load_chat_template(folder)
    if template is None:
        raise ConfigError(
            f"the tokenizer in {folder} has no chat template",
            "add chat_template to its tokenizer_config.json",
        )
    return ChatEncoder(own, template, max_tokens)


def _texts(
    kind: str, files: Sequence[Path], column: str, once: bool, counting: Counting, progress: PackProgress
) -> Iterator[str]:
    """Texts of ``files``; those left out are counted."""
    from minicpm4.data.sources import distinct, texts

    read = given = 0

    def every() -> Iterator[str]:
        nonlocal read
        for text in texts(kind, progress.files(files), column):
            read += 1
            yield text

    for text in distinct(every()) if once else every():
        given += 1
        yield text
    counting.left_out["the same as one before"] += read - given
    if kind in ("text", "html", "package"):
        counting.left_out["files with nothing to read (empty, indexes, menus)"] += len(files) - read
