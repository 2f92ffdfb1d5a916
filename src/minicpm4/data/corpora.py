"""Named sources of documents, as a recipe's ``[corpora.NAME]`` tables say (``data/packer.py`` packs them)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minicpm4.config.strict import require, suggest
from minicpm4.data.needles import check_counts
from minicpm4.data.packages import is_package
from minicpm4.data.sources import KINDS, files_of
from minicpm4.errors import ConfigError
from minicpm4.places import from_user

__all__ = ["MADE", "PLAIN", "WHOLE", "Corpus", "Made"]

PLAIN = tuple(kind for kind in KINDS if kind != "chat")  # what a tokenizer can be trained on
MADE = ("needles", "copies")  # from another corpus
WHOLE = ("chat", "questions", *MADE)  # documents of which half would be of no use
CORPUS_KINDS = (*KINDS, "questions", *MADE, "shards")


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
        check_counts(self.needles, self.queries, self.digits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A named source of documents, by ``kind``:

    text, html      ``paths``: files, or folders of files
    jsonl, parquet  likewise; ``column``: where each line or row keeps its text
    package         ``paths``: apt:NAME or pip:NAME==VERSION, fetched and unpacked, never run
    chat            JSON lines or parquet; ``column``: messages with roles; only the assistant's words are
                    learnt; columns ``tools``, ``documents``, ``chat_template_kwargs`` reach the template
    questions       paths as of package or html: each heading asks, the paragraph below it answers
    needles, copies made of another corpus, as ``[corpora.NAME.made]`` says
    shards          one folder that is packed already

    ``holdout``: the share of documents kept for validation, by hashes of their texts (``data/holdout.py``);
    what is made of a corpus is made of the others. ``max_tokens``: longer conversations end after the last
    answer that fits (0: any length). ``distinct``: leave out texts (not conversations) that came before.
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

    @property
    def folder(self) -> Path:
        """Where shards that are packed already are. Raises ConfigError."""
        return from_user(self.paths[0])

    def files(self) -> list[Path]:
        """The files it is made from; packages are fetched. Raises ConfigError, UnsupportedError."""
        if self.kind in (*MADE, "shards"):
            return []
        if self.kind != "questions":
            return files_of(self.kind, self.paths)
        found: list[Path] = []
        for path in self.paths:
            found += files_of("package" if is_package(path) else "html", [path])
        return found

    def require_plain(self) -> None:
        """Raise ConfigError unless a tokenizer can be trained on it, and needles be hidden in it."""
        if self.kind not in PLAIN:
            raise ConfigError(
                f"no tokenizer can be trained on a corpus of kind {self.kind!r}",
                "use one of " + ", ".join(PLAIN),
            )
