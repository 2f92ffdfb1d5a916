"""What a run needs before its first step: tokenizer and packed data, made once, found again at the next
start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minicpm4.data.corpora import Corpus
from minicpm4.data.packer import Haystack, check_packed, corpus_texts, in_order, pack_all
from minicpm4.data.shards import ShardSet, is_set
from minicpm4.data.tokenizer import take_tokenizer, train_tokenizer
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.model.source import open_text
from minicpm4.text.model_text import LAST, ModelText
from minicpm4.train.going_on import TOKENIZER, going_on, mark_tokenizer
from minicpm4.train.recipe import Recipe

__all__ = ["DATA", "Prepared", "packed", "prepare"]

DATA = "data"  # in a run's folder: its packed sets
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """``tokenizer``: its folder; ``vocab_size`` and ``special``, what a new model's config.json says of
    it."""

    tokenizer: Path
    vocab_size: int
    special: Mapping[str, int]
    data: Mapping[str, ShardSet]

    def hashes(self) -> dict[str, str]:
        """What a checkpoint is held to."""
        return {name: data.hash for name, data in self.data.items()}


def prepare(recipe: Recipe, run: Path, say: Say = lambda text: None) -> Prepared:
    """Make or find tokenizer and shards in ``run``. Raises ConfigError, CheckpointError, TextError."""
    files = {name: corpus.files() for name, corpus in recipe.corpora.items()}
    folder = _tokenizer(recipe, run, files, say)
    opened = ModelText(folder)
    data = pack_all(recipe.corpora, files, opened, run / DATA, say)
    own = opened.tokenizer
    special = {"bos_token_id": own.bos_token_id} if own.bos_token_id is not None else {}
    if own.eos_token_ids:
        special["eos_token_id"] = own.eos_token_ids[0]
    return Prepared(tokenizer=folder, vocab_size=own.vocab_size, special=special, data=data)


def packed(recipe: Recipe, run: Path, text: ModelText | None = None) -> dict[str, ShardSet]:
    """The sets of ``recipe`` that are packed already, in ``run`` or where a corpus says; nothing is made.
    ``text``: the tokenizer that a run would take, where it is known. Raises CheckpointError for a set that is
    damaged, or made otherwise than a run would make it of the files that are here."""
    found: dict[str, ShardSet] = {}
    if (run / TOKENIZER / LAST).is_file():
        text = ModelText(run / TOKENIZER)
    for name, corpus in in_order(recipe.corpora):
        own = corpus.kind == "shards"
        folder = corpus.folder if own else run / DATA / name
        if not is_set(folder):
            continue
        one = ShardSet(folder)
        if not own:
            made, haystack = corpus.made, None
            if made is not None and made.haystack in found:
                haystack = Haystack(data=found[made.haystack], holdout=recipe.corpora[made.haystack].holdout)
            check_packed(corpus, one, files=_here(corpus), tokenizer=text, haystack=haystack)
        found[name] = one
    return found


def _here(corpus: Corpus) -> list[Path] | None:
    """The files of ``corpus``; None where some are not on this machine."""
    try:
        return corpus.files()
    except (ConfigError, UnsupportedError):
        return None


def _tokenizer(recipe: Recipe, run: Path, files: Mapping[str, Sequence[Path]], say: Say) -> Path:
    going_on(recipe, run)  # what is there is of this recipe
    folder = run / TOKENIZER
    if (folder / LAST).is_file():
        return folder
    mark_tokenizer(recipe, run)
    wanted = recipe.tokenizer
    if wanted.path:
        take_tokenizer(open_text(recipe.tokenizer.source()), folder)
        return folder
    say(f"training a tokenizer of {wanted.vocab_size:,} tokens")
    every = (text for name in wanted.corpora for text in corpus_texts(recipe.corpora[name], files[name]))
    train_tokenizer(every, wanted.vocab_size, folder)
    return folder
