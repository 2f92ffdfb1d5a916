"""The original that quantisation.py and other tools round: a model moved off the grid of its own few bits,
and the texts to calibrate and compare on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4 import LLM
from minicpm4.files import write_file, writing_folder
from minicpm4.formats.hf_write import write_folder
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.tensor_source import array_source, checkpoint_source
from minicpm4.kernels.registry import exact_isa
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.layer import Layer, read_layer
from minicpm4.quantize.smooth import fold, shared
from minicpm4.quantize.walk import STAGES
from minicpm4.text.manual import python_manual

ROOT = Path(__file__).parents[1]
RANGE = (0.7, 1.4)
# Products in float32: what is compared is what rounding did, not what the engine does.
EXACT: dict[str, Any] = {"kv": "float32", "weights": "f32", "isa": exact_isa(floats=True)}
LIBRARY = {  # of Python: what code is calibrated on, and what it is tested on
    "calibration": ("argparse", "ast", "configparser", "datetime", "decimal", "inspect", "mailbox", "pickle"),
    "test": ("fractions", "heapq", "shlex", "statistics", "textwrap"),
}


def texts(folder: Path) -> dict[str, dict[str, Path]]:
    """Files of text by use ("calibration", "test") and kind ("english", "python")."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Path]] = {}
    sources = {use: "\n\n".join(_source(name) for name in names) for use, names in LIBRARY.items()}
    english = {
        "calibration": python_manual(),
        "test": (ROOT / "examples" / "how_sqlite_is_tested.txt").read_text(encoding="utf-8"),
    }
    for use in LIBRARY:
        found[use] = {"english": folder / f"{use}-english.txt", "python": folder / f"{use}-python.txt"}
        write_file(found[use]["english"], english[use])
        write_file(found[use]["python"], sources[use])
    return found


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def factors(layer: Layer, names: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Random factors of a stage's columns, those that come from one row equal; and how many do."""
    share, width = shared(layer.config, names), layer.weight(names[0]).shape[1]
    if share == 1:
        return rng.uniform(*RANGE, width).astype(np.float32), share
    heads = rng.uniform(*RANGE, (width // share // layer.config.head_dim, 1, layer.config.head_dim))
    return np.repeat(heads, share, axis=1).reshape(-1).astype(np.float32), share


def move(opened: OpenModel, target: Path, seed: int) -> None:
    """Write a model, moved off its grid, to the folder ``target`` in float32."""
    rng, config = np.random.default_rng(seed), opened.config
    ends = (EMBED, "model.norm.weight", *(() if config.tie_word_embeddings else (HEAD,)))
    sources = {name: checkpoint_source(opened.checkpoint, name) for name in ends}
    for index in range(config.num_hidden_layers):
        layer = read_layer(opened.checkpoint, config, index)
        for names in STAGES:
            fold(layer, names, *factors(layer, names, rng))
        prefix = f"model.layers.{index}."
        sources |= {prefix + name: array_source(values) for name, values in layer.floats.items()}
    with writing_folder(target.resolve(), durable=True) as new:
        write_folder(new, config, sources, beside=opened.text().files())


def check_moved(name: str, target: Path, ids: list[int]) -> dict[str, float | None]:
    """How far the moved model's logits are from the original's, as a part of the largest; and what part of
    the values of its matrices of 4 bits change when they are rounded to the original's format again,
    None where it has none."""
    logits = []
    for one in (name, str(target)):
        with LLM(one, context=len(ids) + 8, max_batch=1, **EXACT) as llm:
            logits.append(llm.logits(ids).astype(np.float64))
    before, after = open_model(name).checkpoint, open_model(target).checkpoint
    changed = []
    for tensor, described in before.tensors.items():
        if described.spec.kind == "int4":
            values = unpack(after.load(tensor))
            changed.append(float((unpack(pack_from_float(values, described.spec)) != values).mean()))
            after.release(tensor)
    return {
        "logits_apart": float(np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max()),
        "off_grid": float(np.mean(changed)) if changed else None,
    }
