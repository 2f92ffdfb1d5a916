"""Packed sets for people: progress as they are written, what they hold, one document of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm4.cli.options import number
from minicpm4.cli.terminal import console, sanitize, show, table
from minicpm4.config.strict import require

if TYPE_CHECKING:
    from minicpm4.data.packing import Counting
    from minicpm4.data.shards import ShardSet


class PackProgress:
    """A bar over ``total`` bytes of files, or ``documents``; where nobody watches, a line now and then."""

    EVERY = 15.0  # seconds between lines

    def __init__(self, what: str, total: int, documents: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._documents = documents
        self._started = self._spoken = time.perf_counter()
        self._what, self._total, self._done, self._text = what, max(total, 1), 0, ""
        self._plain = not sys.stderr.isatty()
        columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console(sys.stderr), disable=self._plain, transient=True
        )
        self._task = self._bar.add_task("", total=self._total)

    def files(self, files: Sequence[Path]) -> Iterator[Path]:
        """``files``, each counted once it has been read."""
        for file in files:
            yield file
            self._done += size_of([file])
            self._tell()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def packed(self, documents: int, tokens: int, nbytes: int) -> None:
        """What ``Counting`` tells."""
        rate = tokens / max(self.seconds, 1e-9)
        self._done = documents if self._documents else self._done
        self._text = f"{documents:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s"
        self._tell()

    def _tell(self) -> None:
        self._bar.update(self._task, completed=self._done, description=self._text)
        now = time.perf_counter()
        if self._plain and now - self._spoken > self.EVERY:
            self._spoken = now
            told = f"{self._done / self._total:.0%}", self._text
            print(f"{self._what}: {', '.join(filter(None, told))}", file=sys.stderr)

    def __enter__(self) -> PackProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            print("interrupted; the same command goes on after the last whole shard", file=sys.stderr)


def size_of(files: Iterable[Path]) -> int:
    """Bytes of all ``files``."""
    return sum(file.stat().st_size for file in files)


def set_facts(found: ShardSet) -> list[tuple[str, str]]:
    """Sizes, and what the manifest says of how the set was made."""
    about = found.manifest
    facts = [("documents", f"{len(found):,}"), ("tokens", f"{found.num_tokens:,}")]
    learnt = found.num_learnt
    if learnt != found.num_tokens:
        facts.append(("learnt tokens", f"{learnt:,} ({learnt / max(found.num_tokens, 1):.1%})"))
    facts += [("shards", f"{len(about['shards']):,}"), ("vocabulary", f"{found.vocab_size:,}")]
    facts += [
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in about.items()
        if key not in ("shards", "vocab_size", "version", "bytes")
    ]
    return [*facts, ("hash of the set", found.hash)]


def print_notes(notes: Iterable[str]) -> None:
    """What was left out as a set was packed, and what is worth knowing of the rest."""
    for note in notes:
        print(sanitize(note))


def print_lengths(found: ShardSet) -> None:
    """A table of documents by their lengths."""
    from minicpm4.data.lengths import bins

    shown = table("tokens in a document", "documents", "share", "tokens", "share", left=1)
    for one in bins(found.lengths):
        shown.add_row(
            f"{one.low:,} to {one.high - 1:,}" if one.high - one.low > 1 else f"{one.low:,}",
            f"{one.documents:,}",
            f"{one.documents / len(found):.1%}",
            f"{one.tokens:,}",
            f"{one.tokens / found.num_tokens:.1%}",
        )
    show(shown)


def print_document(found: ShardSet, model: str, document: int, most: int) -> None:
    """Show a document, of one longer than ``most`` tokens both ends; learnt tokens stand out where not all
    are. Raises ConfigError, TextError."""
    from rich.text import Text

    from minicpm4.model.source import open_text

    text_of = open_text(model)
    tokenizer = text_of.tokenizer
    found.check_tokenizer(text_of.fingerprint)
    require(len(found) > 0, f"{found.folder} has no documents")
    number("--document", document, len(found) - 1)
    tokens, learn = found.read(document, 0, 1 << 62)
    marks = [False] * len(tokens) if learn is None else learn.tolist()
    text = Text()
    half = most // 2
    ends = [(0, len(tokens))] if len(tokens) <= most else [(0, half), (len(tokens) - half, len(tokens))]
    for start, stop in ends:
        if start:
            text.append(f"\n… {start - half:,} tokens …\n", style="dim")
        edges = [i for i in range(start + 1, stop) if marks[i] != marks[i - 1]]
        for at, until in pairwise([start, *edges, stop]):
            ids = tokens[at:until].tolist()
            part = sanitize(tokenizer.decode(ids, skip_special_tokens=False, continuation=True))
            learnt = f"⟦{part}⟧" if not sys.stdout.isatty() else part
            text.append(learnt if marks[at] else part, style="bold green" if marks[at] else "")
    print(f"\ndocument {document:,}: {len(tokens):,} tokens")
    console(sys.stdout).print(text, soft_wrap=True)


def print_summary(found: ShardSet, counting: Counting, seconds: float) -> None:
    """What was packed, how fast, and what was left out, as ``counting`` has it."""
    facts = {"documents": f"{len(found):,}", "tokens": f"{found.num_tokens:,}"}
    if counting.nbytes:
        facts["bytes per token"] = f"{counting.nbytes / counting.tokens:.2f}"
    if found.num_learnt != found.num_tokens:
        facts["learnt"] = f"{found.num_learnt / found.num_tokens:.1%}"
    if counting.documents:
        facts["left out"] = f"{counting.left_out.total():,}"
        facts["tokens/s"] = f"{counting.tokens / seconds:,.0f}"
    shown = table(*facts, left=0)
    shown.add_row(*facts.values())
    show(shown)
    print_notes(counting.lines() or found.notes)
    before = "" if counting.documents or not len(found) else ", which was there already"
    print(f"{found.folder}: set {found.hash}{before}")
