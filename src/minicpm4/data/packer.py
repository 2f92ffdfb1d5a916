"""The one way from a corpus to a packed set, for recipes and for ``minicpm4 data``; no torch.

The same corpus and tokenizer give the same set, whoever packs it: its manifest says what it is made of. What
a recipe holds out is packed with the rest and chosen as batches are made (``ShardSet.chosen``); what is made
of a corpus (needles, copies) is made of the documents that are not held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require
from minicpm4.data.chat import ChatEncoder
from minicpm4.data.conversation import Conversation
from minicpm4.data.copies import copies
from minicpm4.data.corpora import WHOLE, Corpus, Made
from minicpm4.data.holdout import chances, mark_of, mark_of_messages, split
from minicpm4.data.needles import NeedleMaker
from minicpm4.data.packing import Counting, chat_documents, text_documents
from minicpm4.data.questions import page_conversations
from minicpm4.data.shards import Chosen, Document, ShardSet, is_set, write_shards
from minicpm4.data.sources import (
    conversations,
    distinct,
    filter_hash,
    hash_of,
    texts,
)
from minicpm4.text.model_text import ModelText
from minicpm4.text.tokenizer import Tokenizer

__all__ = [
    "Haystack",
    "Side",
    "check_packed",
    "corpus_texts",
    "in_order",
    "pack_all",
    "pack_set",
    "pack_texts",
    "require_sides",
    "require_template",
]

Read = Callable[[Sequence[Path]], Iterable[Path]]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Of a corpus the texts that ``share`` holds out (``held_out``), or the others."""

    share: float
    held_out: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Haystack:
    """A packed set of text and the share of it that is held out, and stays out of what is made of it."""

    data: ShardSet
    holdout: float = 0.0

    @property
    def documents(self) -> Chosen:
        """What may be used."""
        return Chosen(self.data, self.data.chosen(self.holdout, held_out=False))


def corpus_texts(
    corpus: Corpus, files: Sequence[Path], counting: Counting | None = None, read: Read = iter
) -> Iterator[str]:
    """Its texts; those left out are counted once all have gone by. ``read`` gives the files in their order.
    Raises ConfigError for a kind that has no texts."""
    corpus.require_plain()
    seen = given = skipped = 0

    def skip(reason: str, where: str) -> None:
        nonlocal skipped
        skipped += 1
        if counting is not None:
            counting.skip(reason, where)

    def every() -> Iterator[str]:
        nonlocal seen
        for text in texts(corpus.kind, read(files), corpus.at, skip):
            seen += 1
            yield text

    for text in distinct(every()) if corpus.distinct else every():
        given += 1
        yield text
    if counting is not None:
        counting.left_out["the same as one before"] += seen - given
        if corpus.kind in ("text", "html", "package"):  # a file is a document
            empty = len(files) - seen - skipped
            counting.left_out["files with nothing to read (empty, indexes, menus)"] += empty


def pack_set(
    corpus: Corpus,
    folder: Path,
    tokenizer: ModelText,
    *,
    files: Sequence[Path] = (),
    haystack: Haystack | None = None,
    side: Side | None = None,
    counting: Counting | None = None,
    read: Read = iter,
) -> ShardSet:
    """The packed set of ``corpus`` in ``folder``: what is there already is taken, what was cut off goes on.

    ``files``: ``corpus.files()``; ``haystack``: what a corpus of kind needles or copies is made of; ``side``:
    None packs all; ``counting`` is told what goes by; ``read``: as of ``corpus_texts``. Raises ConfigError,
    CheckpointError, TextError.
    """
    counting = counting or Counting()
    if corpus.made is not None:
        assert haystack is not None and side is None
        haystack.data.check_tokenizer(tokenizer.fingerprint)
        made = counting.each(_made(corpus.kind, corpus.made, haystack, tokenizer))
    else:
        made = _read(corpus, files, tokenizer, side, counting, read)
    about = _about(corpus, side=side, files=files, tokenizer=tokenizer, haystack=haystack)
    size = tokenizer.tokenizer.vocab_size
    return write_shards(folder, made, vocab_size=size, about=about, told=counting.lines)


def check_packed(
    corpus: Corpus,
    found: ShardSet,
    *,
    files: Sequence[Path] | None,
    tokenizer: ModelText | None,
    haystack: Haystack | None,
) -> None:
    """Raise CheckpointError, in the words of ``pack_set``, where ``found`` was made otherwise than ``corpus``
    says; of what is None nothing is asked."""
    found.check_made(_about(corpus, files=files, tokenizer=tokenizer, haystack=haystack))


def _about(
    corpus: Corpus,
    *,
    side: Side | None = None,
    files: Sequence[Path] | None,
    tokenizer: ModelText | None,
    haystack: Haystack | None,
) -> dict[str, Any]:
    """What a packed set's manifest says that it is made of, as far as it is known."""
    about: dict[str, Any] = {"tokenizer": tokenizer.fingerprint} if tokenizer is not None else {}
    about |= _settings(corpus, side or Side(share=0.0))
    if corpus.made is None:
        about |= {"source": hash_of(files)} if files is not None else {}
    elif haystack is not None:
        about["source"] = haystack.data.hash
        about |= {"haystack_holdout": haystack.holdout} if haystack.holdout else {}
    return about


def pack_texts(corpora: Sequence[Corpus], folder: Path, tokenizer: Tokenizer) -> ShardSet:
    """The distinct texts of several plain ``corpora`` in one set: text to hide needles in.

    Raises ConfigError, CheckpointError.
    """
    every = distinct(text for corpus in corpora for text in corpus_texts(corpus, corpus.files()))
    return write_shards(folder, text_documents(every, tokenizer), vocab_size=tokenizer.vocab_size, about={})


def in_order(corpora: Mapping[str, Corpus]) -> list[tuple[str, Corpus]]:
    """What is made of others comes after them."""
    return sorted(corpora.items(), key=lambda item: item[1].made is not None)


def pack_all(
    corpora: Mapping[str, Corpus],
    files: Mapping[str, Sequence[Path]],
    tokenizer: ModelText,
    folder: Path,
    say: Say,
) -> dict[str, ShardSet]:
    """Packed sets of all ``corpora`` in ``folder``. Raises ConfigError, CheckpointError, TextError."""
    found: dict[str, ShardSet] = {}
    for name, corpus in in_order(corpora):
        counting = Counting()
        if corpus.kind == "shards":
            found[name] = ShardSet(corpus.folder)
            found[name].check_tokenizer(tokenizer.fingerprint)
        else:
            if not is_set(folder / name):
                say(f"packing {name}: {corpus.kind}, {len(files[name]):,} files")
            haystack = None
            if corpus.made is not None:
                source = corpus.made.haystack
                require_sides(source, found[source], corpora[source].holdout)
                haystack = Haystack(data=found[source], holdout=corpora[source].holdout)
            found[name] = pack_set(
                corpus, folder / name, tokenizer, files=files[name], haystack=haystack, counting=counting
            )
        for count, why in counting.told():
            say(f"{name}: {count:,} left out: {why}")
        for note in counting.notes():
            say(f"{name}: {note}")
        say(_told(name, found[name], corpus.holdout))
    return found


def _told(name: str, found: ShardSet, holdout: float) -> str:
    """A line on a set."""
    told = f"{name}: {len(found):,} documents, {found.num_tokens:,} tokens"
    return f"{told}, {len(found.chosen(holdout, held_out=True)):,} documents held out" if holdout else told


def require_sides(name: str, found: ShardSet, holdout: float) -> None:
    """Raise ConfigError where what is held out of a corpus is nothing, or all."""
    if not holdout:
        return
    held = len(found.chosen(holdout, held_out=True))
    own = chances(found.marks())
    require(
        held > 0,
        f"corpus {name!r}: holdout = {holdout:g} holds out none of its {len(found):,} documents",
        f"a hash of each text decides: above {own.min(initial=1.0):.3g} the first is held out",
    )
    require(
        held < len(found),
        f"corpus {name!r}: holdout = {holdout:g} holds out all of its {len(found):,} documents",
        f"a hash of each text decides: up to {own.max(initial=0.0):.3g} one is left to train on",
    )


def require_template(corpus: Corpus, tokenizer: ModelText) -> None:
    """Raise ConfigError where ``corpus`` is of conversations, and ``tokenizer`` cannot render them."""
    require(
        corpus.kind not in WHOLE or corpus.made is not None or tokenizer.has_chat_template,
        f"the tokenizer in {tokenizer.path} has no chat template, which kind {corpus.kind!r} needs",
        "add chat_template to its tokenizer_config.json",
    )


def _settings(corpus: Corpus, side: Side) -> dict[str, Any]:
    """What, beside files and tokenizer, decides the documents: kept in the manifest."""
    settings: dict[str, Any] = {"kind": corpus.kind, "column": corpus.at}
    settings["filter"] = filter_hash(
        corpus.kind, distinct=corpus.distinct, share=side.share, held_out=side.held_out
    )
    if corpus.kind in WHOLE:
        settings |= {"whole": True, "max_tokens": corpus.max_tokens}
    if corpus.made is not None:
        settings["made"] = {**asdict(corpus.made), "lengths": list(corpus.made.lengths)}
    return settings


def _read(
    corpus: Corpus,
    files: Sequence[Path],
    tokenizer: ModelText,
    side: Side | None,
    counting: Counting,
    read: Read,
) -> Iterator[Document]:
    """Documents of the corpora that are read from files."""
    if corpus.kind not in WHOLE:
        every = corpus_texts(corpus, files, counting, read)
        kept = every if side is None else split(every, side.share, side.held_out, mark_of)
        return text_documents(kept, tokenizer.tokenizer, counting)
    require_template(corpus, tokenizer)
    told = _conversations(corpus, read(files), counting)
    if side is not None:
        told = split(told, side.share, side.held_out, lambda one: mark_of_messages(one[1]))
    return chat_documents(
        told, ChatEncoder(tokenizer.tokenizer, tokenizer.template, corpus.max_tokens), counting
    )


def _conversations(corpus: Corpus, files: Iterable[Path], counting: Counting) -> Iterator[Conversation]:
    if corpus.kind == "chat":
        return conversations(files, corpus.at, counting.skip, counting.note)
    return (item for file in files for item in page_conversations(file, counting.skip))


def _made(kind: str, wanted: Made, haystack: Haystack, tokenizer: ModelText) -> Iterator[Document]:
    own, given = tokenizer.tokenizer, haystack.documents
    if kind == "copies":
        return copies(own, given, wanted.documents, wanted.lengths, wanted.seed)
    make = partial(NeedleMaker, needles=wanted.needles, queries=wanted.queries, digits=wanted.digits)
    return make(own, given, seed=wanted.seed).documents(wanted.documents, wanted.lengths)
