"""Readers of what was kept by an earlier run: converted weights, pages of prompts, the work of a conversion.
Damage of bytes is found: nothing is read from such a file, or just what was written. A forged header, sums
and all, may say other numbers, but of no other shape."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.engine.page_files import PageFiles
from minicpm4.engine.pages import PageKey
from minicpm4.files import json_text
from minicpm4.formats.packing import pack_from_float
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.registry import host_table
from minicpm4.model.cache import KVPool
from minicpm4.model.packed_cache import PREFIX, VARIABLE, WeightCache, kept_files
from minicpm4.model.packed_file import write
from minicpm4.model.source import OpenModel, open_model
from minicpm4.quantize.budget import Budget
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import quantize
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader

_DAMAGED, _FORGED = b"damaged\n", b"forged\n"  # how the bytes behind were made
_KEY = {"version": 3, "files": [{"path": "m", "size": 9}], "weights": "int4", "layout": "rows"}
_NAMES = {"a.weight": ("int4", 32), "b.weight": ("f32", 0), "c.weight": ("int8", 64)}


def forged(rng: Random, raw: bytes) -> bytes:
    """A file of packed matrices whose header says something odd, with the right digest of it."""
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:length])
    said = header.pop("__metadata__")
    if rng.random() < 0.7:
        name = rng.choice(["key", "matrices", "sums"])
        said[name] = mutated_json(rng, json.loads(said[name])).decode("utf-8", "replace")
    else:
        name = rng.choice(list(header))
        header[name] = mutated_value(rng, header[name], [0, 1, 64, -1, 1 << 62, "U8", "F32", "F16", None, []])
    said = mutated_value(rng, said, [None, "", 1, []]) if rng.random() < 0.1 else said
    text = json.dumps({"__metadata__": said, **header}).encode()
    head = struct.pack("<Q", len(text)) + text
    return head + raw[length:-32] + sha256(head).digest()


def _others(rng: Random, tensors: Mapping[str, PackedTensor], key: Any) -> bytes:
    """A whole file of ``key`` in which a matrix is missing, or is another in its name, shape or format."""
    made = dict(tensors)
    name = rng.choice(list(made))
    one = made.pop(name)
    way = rng.random()
    if way < 0.3:
        made[rng.choice(["x", "", f"{name}.codes", name[:-1], "model.layers.0.stored.keys"])] = one
    elif way < 0.8:
        rows, columns = one.shape
        shape = rng.choice([(1, 64), (rows, 128), (rows + 1, columns), (columns, rows), one.shape])
        kind, group = rng.choice([("f32", 0), ("bf16", 0), ("int4", 32), ("int8", 32), ("ternary", 64)])
        values = np.ones(shape, np.float32) * rng.choice([1, 0, 1e30, -1])
        spec = QuantSpec(kind=kind, group_size=group)
        made[name] = pack_from_float(values, spec if spec.fits(shape[1]) else QuantSpec(kind="f32"))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "w", key, made)
        return (Path(folder) / "w").read_bytes()


def _draw_packed(rng: Random, raw: bytes, tensors: Mapping[str, PackedTensor], key: Any) -> bytes:
    way = rng.random()
    if way < 0.3:
        return _DAMAGED + mutated_bytes(rng, raw, 2000)
    return _FORGED + (forged(rng, raw) if way < 0.6 else _others(rng, tensors, key))


@cache
def _matrices() -> dict[str, PackedTensor]:
    rng = np.random.default_rng(0)
    return {
        name: pack_from_float(
            rng.standard_normal((32, 64)).astype(np.float32), QuantSpec(kind=kind, group_size=group)
        )
        for name, (kind, group) in _NAMES.items()
    }


@cache
def _kept_weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "w", _KEY, _matrices())
        return (Path(folder) / "w").read_bytes()


def _draw_weights(rng: Random) -> bytes:
    return _draw_packed(rng, _kept_weights(), _matrices(), _KEY)


def _read_weights(case: bytes, folder: Path) -> None:
    how, _, content = case.partition(b"\n")
    file = folder / f"{PREFIX}x.safetensors"
    file.write_bytes(content)

    def expected(name: str, spec: QuantSpec, shape: tuple[int, int]) -> bool:
        return shape == (32, 64) and (spec.kind, spec.group_size) == _NAMES.get(name)

    kept = WeightCache(file=file, key=_KEY, most=1 << 30)
    found = kept.load(expected)
    assert found or kept.said.startswith("kept weights ignored: "), kept.said
    assert len(kept.said) < 500, kept.said
    for name, one in found.items():
        assert one.shape == (32, 64)
        _assert_same(how + b"\n", one, _matrices()[name])
    with mock.patch.dict(os.environ, {VARIABLE: str(folder)}):
        kept_files()
    require(bool(found), kept.said)


def _assert_same(how: bytes, one: PackedTensor, other: PackedTensor) -> None:
    """Damage that is read is none."""
    if how == _DAMAGED:
        assert one.parts.keys() == other.parts.keys()
        for part, array in one.parts.items():
            assert array.tobytes() == other.parts[part].tobytes()


_PAGE = 16  # tokens


@cache
def _pool() -> KVPool:
    config = ModelConfig.from_hf(_model().path)
    made, rng = KVPool(config, num_pages=2, page_size=_PAGE, kv="bf16", sparse=None), np.random.default_rng(0)
    made.write_page(0, rng.integers(0, 256, made.page_nbytes).astype(np.uint8))
    return made


@cache
def _page_key() -> PageKey:
    tokens = np.arange(_PAGE, dtype=np.int32).tobytes()
    return PageKey(digest=b"d" * 16, parent=b"p" * 16, tokens=tokens)


@cache
def _page() -> tuple[str, bytes]:
    """A page's file: its name, and what is in it."""
    with tempfile.TemporaryDirectory() as name:
        files = PageFiles(Path(name), b"model", _pool(), 1 << 30)
        files.save(0, _page_key(), 5.0)
        files.close()
        (found,) = Path(name).rglob("*.page")
        return str(found.relative_to(name)), found.read_bytes()


def _draw_page(rng: Random) -> bytes:
    name, content = _page()
    table = {"damage": name, "to": "", "more": []}
    if rng.random() < 0.2:  # what stands in its place is no file
        table["to"] = rng.choice(["folder", "link", "pipe", "nothing"])
    stem = Path(name).stem
    for _ in range(rng.choice([0, 0, 3])):
        one, other = (bytes([rng.randrange(3)]).hex() * 16 for _ in range(2))
        odd = rng.choice([f"{one}-{other}", f"{one}-{other}", f"{one}-", one, "x", f"{stem}-{one}", "-" * 65])
        table["more"].append(f"{Path(name).parent}/{odd}.page")
    return (
        json_text(table).encode()
        + b"\n"
        + (mutated_bytes(rng, content, 200) if rng.random() < 0.9 else content)
    )


def _read_page(case: bytes, folder: Path) -> None:
    head, _, content = case.partition(b"\n")
    table = json.loads(head)
    path = folder / _page()[0]
    path.parent.mkdir(parents=True)
    for name in table["more"]:
        (folder / name).write_bytes(content)
    if table["to"] == "folder":
        path.mkdir()
    elif table["to"] == "link":
        (folder / "other").write_bytes(content)
        path.symlink_to(folder / "other")
    elif table["to"] == "pipe":
        os.mkfifo(path)
    elif not table["to"]:
        path.write_bytes(content)
    size = len(_page()[1])
    files = PageFiles(folder, b"model", _pool(), 2 * size)
    try:
        found = files.fill(1, _page_key())
        got = np.empty(_pool().page_nbytes, np.uint8)
        if found:
            _pool().read_page(1, got)
            assert got.tobytes() == content[-32 - len(got) : -32] == _page()[1][-32 - len(got) : -32]
        files.save(0, _page_key(), 5.0)
    finally:
        files.close()
    kept = [one.stat().st_size for one in folder.rglob("*.page") if one.is_file() and not one.is_symlink()]
    # Of a page that was there nothing is written, and what is too much stays until something is.
    assert found or table["to"] == "folder" or sum(kept) <= 2 * size, (
        f"{len(kept)} files of {sum(kept)} bytes"
    )
    require(found, "it is ignored")


_OPTIONS = QuantizeOptions(weights="int4", group=32, method="rtn")
_WORK = {"for": "a test"}


@cache
def _model() -> OpenModel:
    folder = tempfile.mkdtemp()  # as long as the process: its tensors are read from there
    return open_model(make_checkpoint(Path(folder) / "m", num_hidden_layers=1))


def _convert(folder: Path) -> Any:
    found = _model()
    return quantize(found.checkpoint, found.config, _OPTIONS, [], host_table(), folder, _WORK)


@cache
def _work() -> tuple[dict[str, bytes], dict[str, PackedTensor]]:
    """The files of a conversion, and what its layer is."""
    with tempfile.TemporaryDirectory() as name:
        made = _convert(Path(name))
        formats = {"model.layers.0.mlp.up_proj.weight": QuantSpec(kind="int4", group_size=32)}
        Budget(Path(name), _WORK, "hf").write(formats)
        return {one.name: one.read_bytes() for one in Path(name).iterdir()}, made.layer(0)


def _draw_work(rng: Random) -> bytes:
    files = dict(_work()[0])
    name = rng.choice(["layer-00000.safetensors"] * 3 + ["layer-00000.json", "formats.json"])
    if name.endswith(".json"):
        files[name] = mutated_json(rng, json.loads(files[name]))
        return _DAMAGED + packed(files)
    how, _, files[name] = _draw_packed(rng, files[name], _work()[1], _WORK).partition(b"\n")
    return how + b"\n" + packed(files)


def _read_work(case: bytes, folder: Path) -> None:
    how, _, files = case.partition(b"\n")
    unpacked(files, folder)
    before = (folder / "layer-00000.safetensors").read_bytes()
    made = _convert(folder)
    assert len(made.rows) == 7 and all(0 < row.bits < 64 for row in made.rows)
    for name, one in made.layer(0).items():
        assert one.shape == _work()[1][name].shape and one.spec == _work()[1][name].spec, name
        _assert_same(how + b"\n", one, _work()[1][name])
    Budget(folder, _WORK, "hf").read()
    require(before == (folder / "layer-00000.safetensors").read_bytes(), "it is made anew")


READERS = [
    Reader(name="kept-weights", draw=_draw_weights, read=_read_weights),
    Reader(name="pages", draw=_draw_page, read=_read_page, share=0.5),
    Reader(name="conversion", draw=_draw_work, read=_read_work, share=0.3),
]
