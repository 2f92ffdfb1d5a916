"""Readers of what trainings go on from: their checkpoints, tensors and all, and those of heads that draft."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.model.head_layout import HeadLayout
from minicpm4.model.source import open_model
from minicpm4.train.recipe import Recipe, model_config
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import mutated_bytes, mutated_json
from tests.fuzz.reader import Reader

if TYPE_CHECKING:  # which need torch
    from minicpm4.train.draft_head import DraftHead
    from minicpm4.train.draft_run import HeadRun

_SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def _files(run: Path) -> dict[str, bytes]:
    """Of a run with one checkpoint, without its checksums: a hostile one has right ones."""
    kept = [
        file
        for file in run.rglob("*")
        if file.is_file() and file.name not in ("checksums.json", ".lock") and file.suffix != ".svg"
    ]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(kept)}


def _mutated(rng: Random, files: dict[str, bytes]) -> bytes:
    files = dict(files)
    name = rng.choice(sorted(files))
    if rng.random() < 0.4:
        name = next(one for one in files if one.endswith("state.json"))
    content = files[name]
    if name.endswith(".json"):
        content = mutated_json(rng, json.loads(content))
    elif name.endswith(".safetensors") and rng.random() < 0.6:
        size = int.from_bytes(content[:8], "little")
        header = mutated_json(rng, json.loads(content[8 : 8 + size]))
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    else:
        content = mutated_bytes(rng, content, 4000)
    return packed(files | {name: content})


def _recipe() -> Recipe:
    from tests.train.runs import SHAPE, recipe, stage

    shape = {**SHAPE, **_SHAPE}
    return recipe(stage(steps=4), model={"shape": shape, "mup_width": 16})


@cache
def _begun() -> tuple[dict[str, bytes], str]:
    """A run's files, and the hash of what it read."""
    from tests.train.runs import corpus, runner

    with tempfile.TemporaryDirectory() as name:
        data = corpus(Path(name) / "data")
        runner(_recipe(), Path(name) / "run", data).run(until=1)
        return _files(Path(name) / "run"), data.hash


def _draw_checkpoint(rng: Random) -> bytes:
    return _mutated(rng, _begun()[0])


def _read_checkpoint(case: bytes, folder: Path) -> None:
    from minicpm4.train.loop import TrainingRun
    from minicpm4.train.session import TrainingSession, World

    unpacked(case, folder)
    session = TrainingSession(_recipe(), model_config(_recipe(), 96, {}), World())
    run = TrainingRun(_recipe(), folder, session, {}, data={"text": _begun()[1]})
    run.run(until=run.step)


@cache
def _head() -> DraftHead:
    from minicpm4.train.draft_head import DraftHead, first_values

    with tempfile.TemporaryDirectory() as name:
        made = make_checkpoint(Path(name) / "m", num_hidden_layers=6, hidden_size=32, intermediate_size=32)
        source = open_model(made)
        tokens = np.arange(0, source.config.vocab_size, 8, dtype=np.int32)
        layout = HeadLayout(form="eagle3", model=source.config, tokens=tokens)
        return DraftHead(layout, source, dict(first_values(layout, source, 1)), 2, None)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    ids: NDArray[np.int32]
    start: int
    states: dict[int, Any]

    def read(self) -> dict[int, Any]:
        return self.states


def _head_run(folder: Path) -> HeadRun:
    from minicpm4.train.draft_head import states_wanted
    from minicpm4.train.draft_run import HeadRun, HeadSettings
    from minicpm4.train.settings import Decay

    head = _head()
    states = {layers: np.ones((5, 32), np.float32) for layers in states_wanted(head.layout)}
    answer = _Answer(ids=np.arange(6, dtype=np.int32) * 8, start=1, states=states)
    settings = HeadSettings(
        form="eagle3",
        steps=4,
        batch=1,
        rate=0.01,
        warmup=0,
        decay=Decay(),
        turns=2,
        seed=1,
        validate=1,
        every=1,
    )
    return HeadRun(settings, folder, head, [answer], [answer], about={"answers": "few"})


@cache
def _begun_head() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        _head_run(Path(name)).run(until=1)
        return _files(Path(name))


def _draw_head(rng: Random) -> bytes:
    return _mutated(rng, _begun_head())


def _read_head(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    run = _head_run(folder)
    run.run(until=run.step)


READERS = [
    Reader(name="checkpoint", draw=_draw_checkpoint, read=_read_checkpoint, share=0.1),
    Reader(name="head-runs", draw=_draw_head, read=_read_head, share=0.2),
]
