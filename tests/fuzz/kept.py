"""Readers of heads that draft, ranks of tokens, tool-use sets of others, and of what earlier runs have kept:
chats, settings, texts."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from minicpm4.agents.mcp.data.layouts import converted
from minicpm4.agents.mcp.data.talks import write_set
from minicpm4.cli.kept_chats import KeptChats, read_conversation
from minicpm4.config import ModelConfig
from minicpm4.engine import sparse_presets
from minicpm4.evals import calibration_texts
from minicpm4.evals.calibration_texts import Calibration, kept_own
from minicpm4.kernels.ref import RefOps
from minicpm4.model.head_files import plan_head
from minicpm4.model.ranks import chosen_tokens
from minicpm4.model.weights import ModelWeights
from minicpm4.quantize.options import QuantizeOptions
from tests.agents.test_data import GLAIVE, TOOLBENCH, XLAM
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader
from tests.model.drafts import make_draft, make_eagle3

_LAYERS = 6


@cache
def _model() -> ModelWeights:
    with tempfile.TemporaryDirectory() as name:
        return load_model(make_checkpoint(Path(name) / "m", num_hidden_layers=_LAYERS)).weights


@cache
def _heads() -> dict[str, dict[str, bytes]]:
    config: ModelConfig = _model().config
    with tempfile.TemporaryDirectory() as name:
        folders = {
            "mtp": make_draft(Path(name) / "mtp", config),
            "eagle2": make_draft(Path(name) / "eagle2", config, final_norm=None, mup_denominator=3),
            "eagle3": make_eagle3(Path(name) / "eagle3", config, 40, rope_theta=1e4, mlp_bias=False),
        }
        return {
            kind: {file.name: file.read_bytes() for file in folder.iterdir()}
            for kind, folder in folders.items()
        }


def _draw_head(rng: Random) -> bytes:
    files = dict(_heads()[rng.choice(["mtp", "eagle2", "eagle3", "eagle3"])])
    if rng.random() < 0.7:
        config = json.loads(files["config.json"])
        config.setdefault("eagle_config", rng.choice([None, {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}]))
        files["config.json"] = mutated_json(rng, config)
    else:
        files["model.safetensors"] = mutated_bytes(rng, files["model.safetensors"], 3000)
    return packed(files)


def _read_head(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    weights = _model()
    plan_head(folder, weights.config, 64).read(weights, RefOps())


_RANKS = {
    "format": "minicpm4 token ranks",
    "vocabulary": "ab",
    "counted": 9,
    "tokens": [3, 1],
    "counts": [5, 4],
}


def _draw_ranks(rng: Random) -> bytes:
    return mutated_json(rng, _RANKS)


def _read_ranks(case: bytes, folder: Path) -> None:
    (folder / "ranks.json").write_bytes(case)
    chosen_tokens(folder / "ranks.json", "ab", 320, 2, [7])


_LAYOUTS: dict[str, dict[str, Any]] = {"xlam": XLAM, "glaive": GLAIVE, "toolbench": TOOLBENCH}


def _within(rng: Random, record: Any) -> Any:
    """Damage in the JSON that is a text of a record."""
    if not isinstance(record, dict):
        return record
    texts = [key for key, one in record.items() if isinstance(one, str) and one.startswith(("[", "{"))]
    if not texts:
        return record
    key = rng.choice(texts)
    return {**record, key: mutated_json(rng, json.loads(record[key])).decode("utf-8", "replace")}


def _draw_tool_set(rng: Random) -> bytes:
    layout = rng.choice(list(_LAYOUTS))
    record: Any = _LAYOUTS[layout]
    record = _within(rng, record) if rng.random() < 0.5 else mutated_value(rng, record)
    records = [record, _LAYOUTS[layout]]
    content = mutated_json(rng, records) if rng.random() < 0.3 else _dumped(records)
    return layout.encode() + b"\n" + content


def _dumped(records: list[Any]) -> bytes:
    from tests.fuzz.mutate import dumped

    return dumped(records).encode("utf-8", "surrogatepass")


def _read_tool_set(case: bytes, folder: Path) -> None:
    layout, _, content = case.partition(b"\n")
    (folder / "set.json").write_bytes(content)
    write_set(folder / "out", converted(layout.decode(), [folder / "set.json"]))


_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
_CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c", "name": "f", "content": "1"},
    ],
}


def _draw_chat(rng: Random) -> bytes:
    return rng.choice([b"last", b"typed"]) + b"\n" + mutated_json(rng, rng.choice([_CHAT, ["a", "b"]]))


def _read_chat(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    (folder / f"{kind.decode()}.json").write_bytes(content)
    if kind == b"typed":
        KeptChats(folder).remember("c")
        assert KeptChats(folder).lines()[-1] == "c"
        return
    model, messages = read_conversation(folder / "last.json")
    KeptChats(folder).save(model or "m", messages)
    KeptChats(folder).last()


_SETTING = {"topk": 4, "window_size": 128, "dense_len": -1, "kernel_size": 32, "kernel_stride": 16}
_PRESET = {"version": 1, "model": "m", "date": "2026-12-01", "length": 640, "sparse": _SETTING}
_PRESET |= {"figures": {"cache_read": 0.25}}


def _draw_measured(rng: Random) -> bytes:
    """Settings of sparse attention, or a model's own texts, that earlier runs have kept."""
    if rng.random() < 0.5:
        return b"sparse\n" + mutated_json(rng, _PRESET)
    ids = [[1, 2, 3, 4], [5, 6, 7, 8]]
    kept = {
        "of": _calibrated(Path(), None)[1],
        "ids": ids,
        "sha256": calibration_texts.texts_sha256(ids),
    }
    return b"texts\n" + mutated_json(rng, kept)


def _read_measured(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    file = folder / "texts.json"
    file.write_bytes(content)
    if kind == b"texts":
        texts = _calibrated(folder, [[1, 2, 3, 4]] * 2)[0]
        assert len(texts) == 2 and all(0 <= token < 320 for one in texts for token in one), texts
        return
    with patch.object(sparse_presets, "folder", lambda: folder):
        found = sparse_presets._own("texts")
    if found is not None:
        str(found.config)


def _calibrated(folder: Path, made: list[list[int]] | None) -> tuple[list[list[int]], dict[str, Any]]:
    """The texts that a conversion in ``folder`` goes on with, and what the file has to be of; ``made``: those
    that the model would write."""
    opened: Any = SimpleNamespace(config=_model().config, checkpoint=SimpleNamespace(files=[]))
    wanted: dict[str, Any] = {}
    with (
        patch.object(calibration_texts, "_own", lambda *given: made),
        patch.object(calibration_texts, "write_json", lambda file, table: wanted.update(table["of"])),
    ):
        calibration = Calibration(samples=2, length=4)
        texts = kept_own(folder, opened, "m", QuantizeOptions(), calibration, Any, ())
    return texts, wanted


READERS = [
    Reader(name="heads", draw=_draw_head, read=_read_head),
    Reader(name="ranks", draw=_draw_ranks, read=_read_ranks),
    Reader(name="toolsets", draw=_draw_tool_set, read=_read_tool_set, share=0.5),
    Reader(name="measured", draw=_draw_measured, read=_read_measured),
    Reader(name="chats", draw=_draw_chat, read=_read_chat),
]
