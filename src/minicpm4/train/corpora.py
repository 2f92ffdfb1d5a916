"""Named sources of documents, as a recipe's ``[corpora.NAME]`` tables say, and packing them; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minicpm4.config.strict import require, suggest
from minicpm4.data.chat import ChatEncoder
from minicpm4.data.copies import copies
from minicpm4.data.needles import NeedleMaker
from minicpm4.data.packing import Counting, chat_documents, text_documents
from minicpm4.data.questions import page_conversations
from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.data.sources import KINDS, conversations, distinct, files_of, filter_hash, hash_of, texts
from minicpm4.data.tokenizer import fingerprint
from minicpm4.errors import ConfigError
from minicpm4.text import Tokenizer, load_chat_template

__all__ = ["Corpus", "Made", "corpus_texts", "pack"]

PLAIN = tuple(kind for kind in KINDS if kind != "chat")  # what a tokenizer can be trained on
MADE = ("needles", "copies")  # from another corpus
WHOLE = ("chat", "questions", *MADE)  # documents of which half would be of no use
CORPUS_KINDS = (*KINDS, "questions", *MADE, "shards")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """``documents`` made from the text of corpus ``haystack``, of the ``lengths`` (tokens) in turn. Needles
    (``data/needles.py``): ``queries`` of a document's ``needles`` are asked for, values have ``digits``
    digits. Copies (``data/copies.py``): a passage, twice."""

    haystack: str
    documents: int
    lengths: tuple[int, ...]
    needles: int = 1
    queries: int = 1
    digits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.documents < 1 << 32, f"corpus made.documents = {self.documents} is out of range")
        require(
            bool(self.lengths) and all(32 <= n < 1 << 24 for n in self.lengths),
            f"corpus made.lengths = {list(self.lengths)} are not lengths from 32 tokens on",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A named source of documents, by ``kind``:

    text, html      ``paths``: files, or folders of files
    jsonl, parquet  likewise; ``column``: where each line or row keeps its text
    package         ``paths``: apt:NAME or pip:NAME==VERSION, fetched and unpacked, never run
    chat            JSON lines; ``column``: messages with roles; only the assistant's words are learnt
    questions       paths as of package or html: each heading asks, the paragraph below it answers
    needles, copies made of another corpus, as ``[corpora.NAME.made]`` says
    shards          one folder that is packed already

    ``holdout``: the share of documents kept for validation. ``max_tokens``: longer conversations end after
    the last answer that fits (0: any length). ``distinct``: leave out texts that came before.
    """

    kind: str = "text"
    paths: tuple[str, ...] = ()
    column: str = ""
    holdout: float = 0.0
    max_tokens: int = 0
    distinct: bool = True
    made: Made | None = None

    def __post_init__(self) -> None:
        kinds = list(CORPUS_KINDS)
        require(self.kind in kinds, f"corpus kind {self.kind!r} is unknown", suggest(self.kind, kinds))
        require(0 <= self.holdout < 1, f"corpus holdout = {self.holdout} is not from 0 to below 1")
        require(0 <= self.max_tokens < 1 << 30, f"corpus max_tokens = {self.max_tokens} is out of range")
        made = self.kind in MADE
        require(
            made == (self.made is not None),
            f"a corpus of kind {self.kind!r} {'needs' if made else 'has no'} [corpora.NAME.made]",
        )
        require(made or bool(self.paths), f"a corpus of kind {self.kind!r} needs paths")
        require(
            self.kind != "shards" or len(self.paths) == 1, "a corpus of kind 'shards' has one folder in paths"
        )

    @property
    def at(self) -> str:
        """The column that is read."""
        return self.column or ("messages" if self.kind == "chat" else "text")

    def files(self) -> list[Path]:
        """The files it is made from; packages are fetched. Raises ConfigError, UnsupportedError."""
        if self.kind in (*MADE, "shards"):
            return []
        if self.kind != "questions":
            return files_of(self.kind, self.paths)
        found: list[Path] = []
        for path in self.paths:
            found += files_of("package" if path.startswith(("apt:", "pip:")) else "html", [path])
        return found


def corpus_texts(corpus: Corpus, files: Sequence[Path]) -> Iterator[str]:
    """Its texts, for a tokenizer to be trained on. Raises ConfigError for kinds that have none."""
    if corpus.kind not in PLAIN:
        raise ConfigError(
            f"no tokenizer can be trained on a corpus of kind {corpus.kind!r}",
            "use one of " + ", ".join(PLAIN),
        )
    found = texts(corpus.kind, files, corpus.at)
    return distinct(found) if corpus.distinct else found


def pack(
    corpora: Mapping[str, Corpus],
    files: Mapping[str, Sequence[Path]],
    tokenizer: Path,
    own: Tokenizer,
    folder: Path,
    say: Say,
) -> dict[str, ShardSet]:
    """Packed sets of all ``corpora``, in ``folder``; what is there already is taken.

    ``tokenizer``: the folder of ``own``. Raises ConfigError, CheckpointError, TextError.
    """
    mark = fingerprint(tokenizer)
    found: dict[str, ShardSet] = {}
    # What is made of others comes after them.
    for name in sorted(corpora, key=lambda name: corpora[name].made is not None):
        corpus = corpora[name]
        if corpus.kind == "shards":
            found[name] = ShardSet(Path(corpus.paths[0]).expanduser())
        else:
            about: dict[str, Any] = {"tokenizer": mark, "source": hash_of(files[name]), **_settings(corpus)}
            counting = Counting()
            if corpus.made is not None:
                about["source"] = found[corpus.made.haystack].hash
                documents = _made(corpus.kind, corpus.made, found[corpus.made.haystack], own)
            elif corpus.kind in WHOLE:
                template = load_chat_template(tokenizer)
                if template is None:
                    raise ConfigError(
                        f"the tokenizer in {tokenizer} has no chat template, which corpus {name!r} needs",
                        "add chat_template to its tokenizer_config.json",
                    )
                encoder = ChatEncoder(own, template, corpus.max_tokens)
                documents = chat_documents(_conversations(corpus, files[name]), encoder, counting)
            else:
                documents = text_documents(corpus_texts(corpus, files[name]), own, counting)
            if not (folder / name / "manifest.json").is_file():
                say(f"packing {name}: {corpus.kind}, {len(files[name]):,} files")
            found[name] = write_shards(folder / name, documents, vocab_size=own.vocab_size, about=about)
            for reason, count in counting.left_out.most_common():
                say(f"{name}: {count:,} left out: {reason}")
        found[name].check_tokenizer(mark)
        say(f"{name}: {len(found[name]):,} documents, {found[name].num_tokens:,} tokens")
    return found


def _settings(corpus: Corpus) -> dict[str, Any]:
    """What, beside files and tokenizer, decides the documents: kept in the manifest."""
    settings: dict[str, Any] = {"kind": corpus.kind, "column": corpus.at}
    settings["filter"] = filter_hash(corpus.kind, distinct=corpus.distinct)
    if corpus.kind in WHOLE:
        settings |= {"whole": True, "max_tokens": corpus.max_tokens}
    if corpus.made is not None:
        settings["made"] = {**asdict(corpus.made), "lengths": list(corpus.made.lengths)}
    return settings


def _made(kind: str, wanted: Made, haystack: ShardSet, own: Tokenizer) -> Iterator[Document]:
    if kind == "copies":
        return copies(own, haystack, wanted.documents, wanted.lengths, wanted.seed)
    maker = NeedleMaker(
        own,
        haystack,
        seed=wanted.seed,
        needles=wanted.needles,
        queries=wanted.queries,
        digits=wanted.digits,
    )
    return maker.documents(wanted.documents, wanted.lengths)


def _conversations(corpus: Corpus, files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    if corpus.kind == "chat":
        return conversations(files, corpus.at)
    return (item for file in files for item in page_conversations(file))
