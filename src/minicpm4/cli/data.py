"""``minicpm4 data``: tokenizers, packed training data, and what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.options import check_outputs, number, numbers
from minicpm4.cli.packed import (
    PackProgress,
    print_document,
    print_lengths,
    print_notes,
    print_summary,
    set_facts,
    size_of,
)
from minicpm4.cli.terminal import print_facts
from minicpm4.config.strict import require, suggest
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4.data.corpora import Corpus

SAMPLE_CHARS = 1 << 20  # of text that a new tokenizer is tried on
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it.")]
TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="MODEL",
        help="Whose tokenizer: a folder, a .gguf file, a known name or a hub repository.",
    ),
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
    from minicpm4.data.packer import corpus_texts
    from minicpm4.data.packing import Counting, size_in_utf8
    from minicpm4.data.sources import distinct
    from minicpm4.data.tokenizer import train_tokenizer
    from minicpm4.text import load_tokenizer

    _check_folder(output)
    require(not (output / "tokenizer.json").exists(), f"{output} has a tokenizer already", _ELSEWHERE)
    found = [(corpus, corpus.files()) for corpus in (_source(text, column) for text in sources)]
    sample = _Sample()
    with PackProgress("reading", sum(size_of(files) for _, files in found)) as progress:
        counting = Counting()
        every = (t for one, files in found for t in corpus_texts(one, files, counting, progress.files))
        train_tokenizer(sample.kept(distinct(every)), vocab_size, output)
    for count, why in counting.told():
        print(f"left out {count:,}: {why}")
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
    tokenizer: TokenizerOption,
    output: Output,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="What the paths hold: text, html, jsonl, parquet, package (apt:NAME or pip:NAME==VERSION), "
            "chat (JSON lines or parquet of messages, of which only the assistant's words are learnt), or "
            "questions (pages, each of whose headings asks what the paragraph below it answers).",
        ),
    ] = "text",
    column: Annotated[
        str | None, typer.Option(help="Where lines and rows keep their text (text; of chats: messages).")
    ] = None,
    distinct: Annotated[
        bool, typer.Option("--distinct", help="Leave out texts that came before, white space aside.")
    ] = False,
    holdout: Annotated[
        float, typer.Option(help="Leave out this share of the documents, chosen by hashes of their texts.")
    ] = 0.0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Pack the documents that --holdout leaves out, and no others.")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(help="Longer chats end after the last answer that fits; 0: any length.")
    ] = 0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End at a line, row or file that is wrong, instead of leaving it out."),
    ] = False,
) -> None:
    """Encode documents and write them to shards, for a recipe's corpus of kind "shards".

    A run that was interrupted goes on after its last whole shard when the same command is given again.
    """
    from minicpm4.data.corpora import Corpus
    from minicpm4.data.packer import Side, pack_set
    from minicpm4.data.packing import Counting
    from minicpm4.data.sources import KINDS
    from minicpm4.model.source import open_text

    kinds = [*KINDS, "questions"]
    require(kind in kinds, f"corpus kind {kind!r} is unknown", suggest(kind, kinds))
    chats = kind in ("chat", "questions")
    require(chats or not max_tokens, "--max-tokens is for chats", "other documents are cut in training")
    require(not (chats and distinct), "--distinct is for texts", "not for chats")
    require(0 <= holdout < 1, f"--holdout {holdout:g} is not from 0 to below 1")
    require(holdout > 0 or not held_out, "--held-out needs --holdout", "the share that is held out")
    number("--max-tokens", max_tokens, 1 << 30)
    _check_set_folder(output)
    opened = open_text(tokenizer)
    once = distinct or chats  # of conversations it says nothing: as a recipe has it
    corpus = Corpus(kind=kind, paths=tuple(paths), column=column or "", max_tokens=max_tokens, distinct=once)
    files = corpus.files()
    with PackProgress("packing", size_of(files)) as progress:
        counting = Counting(progress.packed, strict=strict)
        side = Side(share=holdout, held_out=held_out) if holdout else None
        found = pack_set(
            corpus, output, opened, files=files, side=side, counting=counting, read=progress.files
        )
    print_summary(found, counting, progress.seconds)


def needles(
    haystack: Annotated[
        Path, typer.Argument(metavar="HAYSTACK", help="A packed set: the text that needles are hidden in.")
    ],
    *,
    tokenizer: TokenizerOption,
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
    from minicpm4.data.corpora import Corpus, Made
    from minicpm4.data.packer import Haystack, pack_set
    from minicpm4.data.packing import Counting
    from minicpm4.data.shards import ShardSet
    from minicpm4.model.source import open_text

    count, sizes = number("--documents", documents, 1 << 32, 1), numbers("--lengths", lengths, 1 << 24, 32)
    number("--seed", seed, (1 << 63) - 1)
    _check_set_folder(output)
    opened, hay = open_text(tokenizer), Haystack(data=ShardSet(haystack))
    wanted = {"needles": facts, "queries": queries, "digits": digits, "seed": seed}
    made = Made(haystack=haystack.name, documents=count, lengths=tuple(sizes), **wanted)
    with PackProgress("hiding needles", count, documents=True) as progress:
        counting = Counting(progress.packed)
        corpus = Corpus(kind="needles", made=made)
        found = pack_set(corpus, output, opened, haystack=hay, counting=counting)
    print_summary(found, counting, progress.seconds)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A packed set.")],
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whose tokenizer it was packed with, to show a document."),
    ] = None,
    document: Annotated[
        int | None, typer.Option(help="Which document to show, from 0 on; needs --tokenizer. Default: 0.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="At most so many of its tokens, from both ends; needs --tokenizer. Default: 300."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw how long documents are.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the hashes of all files.")] = False,
) -> None:
    """Show what a packed set is made of, how long its documents are, what was told of it, and one of them.

    In the document, learnt tokens stand out (in a pipe: between ⟦ and ⟧) where not all are learnt.
    """
    from minicpm4.data.lengths import length_chart
    from minicpm4.data.shards import ShardSet, is_set

    for name, value in (("--document", document), ("--tokens", tokens)):
        require(
            tokenizer is not None or value is None, f"{name} needs --tokenizer", "whose ids the set holds"
        )
    require(is_set(folder), f"{folder} holds no packed set", "minicpm4 data pack makes one")
    found = ShardSet(folder)
    require(plot is None or len(found) > 0, f"{folder} has no documents to draw")
    check_outputs({"--plot": plot})
    if verify:
        found.verify()
    print_facts(str(folder), [*set_facts(found), *([("files", "as they were written")] if verify else [])])
    print_lengths(found)
    print_notes(found.notes)
    if plot is not None:
        write_file(plot, length_chart(f"Documents of {folder.name}", found.lengths))
        print(f"\n{plot} shows the lengths")
    if tokenizer is not None:
        shown = number("--tokens", 300 if tokens is None else tokens, 1 << 20, 2)
        print_document(found, tokenizer, document or 0, shown)


commands = {"tokenizer": tokenizer, "pack": pack, "needles": needles, "inspect": inspect}

_ELSEWHERE = "give another folder as --output"


def _source(text: str, column: str) -> Corpus:
    """The corpus that ``KIND:PATH`` means."""
    from minicpm4.data.corpora import PLAIN, Corpus

    kind, _, path = text.partition(":")
    require(bool(path), f"{text!r} is not KIND:PATH", "as in text:book.txt or package:apt:sqlite3-doc")
    require(kind in PLAIN, f"{text!r} is of unknown kind {kind!r}", suggest(kind, list(PLAIN)))
    return Corpus(kind=kind, paths=(path,), column=column, distinct=False)


def _check_folder(output: Path) -> None:
    require(not output.exists() or output.is_dir(), f"{output} is not a folder", _ELSEWHERE)


def _check_set_folder(output: Path) -> None:
    """Refuse a folder that holds anything but a packed set, whole or begun."""
    _check_folder(output)
    from minicpm4.data.shards import owns

    other = [one.name for one in output.iterdir() if not owns(one.name)] if output.is_dir() else []
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
