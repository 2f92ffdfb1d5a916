"""Tiny runs for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minicpm4.data.mixture import MixturePart, Stream
from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.train.loop import TrainingRun
from minicpm4.train.recipe import Recipe, model_config, parse_recipe
from minicpm4.train.session import TrainingSession, World
from minicpm4.train.sources import Source
from minicpm4.train.stages import passes

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "scale_emb": 12.0,
    "scale_depth": 1.4,
    "dim_model_base": 64,
    "tie_word_embeddings": True,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sparse_config": {
        "kernel_size": 8,
        "kernel_stride": 4,
        "block_size": 16,
        "window_size": 16,
        "topk": 2,
        "dense_len": -1,
    },
}


def stage(name: str = "stable", **changed: Any) -> dict[str, Any]:
    plain = {
        "steps": 6,
        "batch_tokens": 128,
        "micro_tokens": 64,
        "context": 64,
        "rate": 0.01,
        "data": {"text": 1.0},
    }
    return {"name": name, **plain, **changed}


def recipe(*stages: dict[str, Any], **changed: Any) -> Recipe:
    table = {
        "name": "tiny",
        "output": "unused",
        "model": {"shape": SHAPE, "mup_width": 64},
        "tokenizer": {"path": "unused"},
        "corpora": {"text": {"paths": ["unused"]}},
        "stages": list(stages) or [stage()],
        "checkpoints": {"every": 2, "last": 2},
        "seed": 3,
        **changed,
    }
    return parse_recipe(table)


def corpus(folder: Path) -> ShardSet:
    """Documents with something to learn: each counts up, in its own steps."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(60):
        start, step, length = rng.integers(0, 90), rng.integers(1, 4), rng.integers(20, 100)
        documents.append(Document(tokens=4 + (start + step * np.arange(length)) % 92))
    return write_shards(folder, documents, vocab_size=96, about={"tokenizer": "t"})


def runner(made: Recipe, run: Path, data: ShardSet, world: World | None = None) -> TrainingRun:
    where = world or World()
    session = TrainingSession(made, model_config(made, 96, {}), where)
    sources = {}
    for one in made.stages:
        stream = Stream(
            [MixturePart(name="text", data=data, share=1.0)],
            seed=made.seed,
            tokens=passes(one, where.size).tokens,
            context=one.context,
            rank=where.rank,
            processes=where.size,
        )
        sources[one.name] = Source(training=stream, held_out=[stream.batch(1000)])
    return TrainingRun(made, run, session, sources, data={"text": data.hash})
