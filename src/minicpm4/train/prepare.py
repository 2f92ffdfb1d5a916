"""What a run needs before its first step: tokenizer and packed data, made once, found again at the next
start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicpm4.data.mixture import Part, Stream, buckets
from minicpm4.data.shards import ShardSet
from minicpm4.data.tokenizer import take_tokenizer, train_tokenizer
from minicpm4.text.load import load_tokenizer
from minicpm4.train.corpora import corpus_texts, pack
from minicpm4.train.layout import accumulation
from minicpm4.train.loop import Source
from minicpm4.train.recipe import Recipe, Stage

__all__ = ["Prepared", "prepare", "sources"]

HELD_OUT = 8  # batches that validation looks at
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
    own = load_tokenizer(folder)
    data = pack(recipe.corpora, files, folder, own, run / "data", say)
    special = {"bos_token_id": own.bos_token_id} if own.bos_token_id is not None else {}
    if own.eos_token_ids:
        special["eos_token_id"] = own.eos_token_ids[0]
    return Prepared(tokenizer=folder, vocab_size=own.vocab_size, special=special, data=data)


def sources(recipe: Recipe, prepared: Prepared, rank: int = 0, processes: int = 1) -> dict[str, Source]:
    """Training and held-out batches of each stage. Raises ConfigError."""
    found = {}
    for number, stage in enumerate(recipe.stages):
        parts = accumulation(stage, processes)
        tokens = stage.batch_tokens // (parts * processes)
        place = {"rank": rank, "processes": processes, "tokens": tokens, "context": stage.context}
        training = Stream(_parts(recipe, prepared, stage, held_out=False), seed=recipe.seed + number, **place)
        held: list[Part] = _parts(recipe, prepared, stage, held_out=True) if recipe.validate else []
        batches = []
        if held:
            looked_at = Stream(held, seed=recipe.seed, **place)
            batches = [looked_at.batch(i) for i in range(HELD_OUT)]
        found[stage.name] = Source(training=training, held_out=batches)
    return found


def _parts(recipe: Recipe, prepared: Prepared, stage: Stage, *, held_out: bool) -> list[Part]:
    parts: list[Part] = []
    for name, share in stage.data.items():
        data, holdout = prepared.data[name], recipe.corpora[name].holdout
        kept = _split(len(data), holdout)
        if held_out and not len(kept):
            continue
        chosen = kept if held_out else np.setdiff1d(np.arange(len(data)), kept)
        part = Part(name=name, data=data, share=share, chosen=chosen)
        parts += buckets(part, stage.buckets) if stage.buckets else [part]
    return parts


def _split(count: int, holdout: float) -> NDArray[np.int64]:
    """Documents held out: at least one where a share is asked for, and never all."""
    wanted = min(max(1, round(count * holdout)), count - 1) if holdout else 0
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


def _tokenizer(recipe: Recipe, run: Path, files: Mapping[str, Sequence[Path]], say: Say) -> Path:
    folder = run / "tokenizer"
    if (folder / "tokenizer_config.json").is_file():
        return folder
    wanted = recipe.tokenizer
    if wanted.path:
        take_tokenizer(recipe.tokenizer.source(), folder)
        return folder
    say(f"training a tokenizer of {wanted.vocab_size:,} tokens")
    every = (text for name in wanted.corpora for text in corpus_texts(recipe.corpora[name], files[name]))
    train_tokenizer(every, wanted.vocab_size, folder)
    return folder
