"""Readers of checkpoints: GGUF, split or not; safetensors, as they are and quantised; config.json."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.formats.gguf_write import write_gguf
from minicpm4.formats.quantised_write import QUANTISED
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.source import open_model
from minicpm4.model.stored_prefix import FILE
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.stored_prefix import store_prefix
from tests.formats.gguf_files import hf_weights, metadata, to_gguf
from tests.formats.test_fuzz import gguf_bytes, quantised_bytes, read_everything, safetensors_bytes
from tests.fuzz.mutate import dumped, mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader

_ROPE = [
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64},
    {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0] * 8}
    | {"long_factor": [1.0] * 8},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "linear", "factor": 2.0},
]
_SPARSE = {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 128}
_SPARSE |= {"topk": 4, "dense_len": 64, "use_nope": False}
_ODD_GGUF: list[Any] = [
    *(0, -1, 1 << 31, 1 << 40, 1.5, float("inf"), float("nan"), True, "", "x", "x" * 70_000, "\u2028"),
    *(
        [0],
        [1.5],
        ["a"],
        [float("inf")] * 40,
        [-1] * 40,
        [1 << 31] * 40,
        ["a b"],
        ["a"] * 40,
        [""] * 40,
        [True],
    ),
]


def _metadata() -> dict[str, Any]:
    tokens = [f"t{i}" for i in range(39)] + ["t0t1"]
    return metadata("llama") | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["t0 t1"],
        "tokenizer.ggml.token_type": [1] * 40,
        "tokenizer.ggml.scores": [float(-i) for i in range(40)],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "x",
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
        "llama.vocab_size": 40,
    }


def _draw_gguf(rng: Random) -> bytes:
    if rng.random() < 0.4:
        return mutated_bytes(rng, gguf_bytes())
    table = _metadata()
    if rng.random() < 0.4:
        table["tokenizer.ggml.model"] = "llama"
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(list(table))
        value = rng.choice(_ODD_GGUF)
        if isinstance(table[key], list) and rng.random() < 0.5:
            value = list(table[key])
            value[rng.randrange(len(value))] = rng.choice(value)
        table[key] = value
        if rng.random() < 0.1:
            del table[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        try:
            write_gguf(path, table, to_gguf(hf_weights(), "llama"))
        except (ValueError, TypeError, KeyError, OverflowError):  # what no file can hold
            return mutated_bytes(rng, gguf_bytes())
        return path.read_bytes()


def _read_gguf(case: bytes, folder: Path) -> None:
    (folder / "m.gguf").write_bytes(case or b"\0")
    _open(folder / "m.gguf")


def _open(path: Path) -> None:
    read_everything(path)
    text = open_model(path).text()
    if text.has_chat_template:
        text.template.render([{"role": "user", "content": "a"}])
    text.tokenizer.encode("t0t1 a", parse_special=False)


@cache
def _split() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tensors = to_gguf(hf_weights(), "llama")
        half = len(tensors) // 2
        for number, part in enumerate((tensors[:half], tensors[half:])):
            split = {"split.no": number, "split.count": 2, "split.tensors.count": len(tensors)}
            head = _metadata() if number == 0 else {"general.architecture": "llama"}
            write_gguf(Path(folder) / f"m-{number + 1:05d}-of-00002.gguf", head | split, part)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _draw_split(rng: Random) -> bytes:
    files = dict(_split())
    name = rng.choice(sorted(files))
    files[name] = mutated_bytes(rng, files[name], 2048)
    if rng.random() < 0.1:
        del files[rng.choice(sorted(files))]
    return packed(files)


def _read_split(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    _open(folder / "m-00001-of-00002.gguf")


def packed(files: dict[str, bytes]) -> bytes:
    """Several files as one input."""
    table = {name: len(content) for name, content in files.items()}
    return json.dumps(table).encode() + b"\n" + b"".join(files.values())


def unpacked(case: bytes, folder: Path) -> None:
    """Write what ``packed`` has put together."""
    head, _, rest = case.partition(b"\n")
    for name, size in json.loads(head).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(rest[:size])
        rest = rest[size:]


def _draw_safetensors(rng: Random) -> bytes:
    config, tensors = safetensors_bytes()
    if rng.random() < 0.5:
        return packed({"config.json": config, "model.safetensors": mutated_bytes(rng, tensors, 3000)})
    size = int.from_bytes(tensors[:8], "little")
    header = mutated_json(rng, json.loads(tensors[8 : 8 + size]))
    content = len(header).to_bytes(8, "little") + header + tensors[8 + size :]
    files = {"config.json": config, "model.safetensors": content}
    if rng.random() < 0.3:
        names = list(json.loads(tensors[8 : 8 + size]))
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        files = {"config.json": config, "model-1.safetensors": tensors}
        files["model.safetensors.index.json"] = mutated_json(rng, index)
    return packed(files)


def _draw_quantised(rng: Random) -> bytes:
    config, tensors = quantised_bytes(rng.choice(QUANTISED))
    way = rng.random()
    if way < 0.4:
        table = json.loads(config)
        keys = [key for key in ("quantization_config", "quantization") if key in table] or list(table)
        key = rng.choice(keys)
        table[key] = mutated_value(rng, table[key])
        return packed(
            {"config.json": dumped(table).encode("utf-8", "surrogatepass"), "model.safetensors": tensors}
        )
    if way < 0.7:
        size = int.from_bytes(tensors[:8], "little")
        header = mutated_json(rng, json.loads(tensors[8 : 8 + size]))
        tensors = len(header).to_bytes(8, "little") + header + tensors[8 + size :]
    else:
        tensors = mutated_bytes(rng, tensors, 900)
    return packed({"config.json": config, "model.safetensors": tensors})


def _read_folder(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    read_everything(folder)


def _draw_config(rng: Random) -> bytes:
    config = json.loads(safetensors_bytes()[0])
    if rng.random() < 0.5:
        config[rng.choice(["rope_scaling", "rope_parameters"])] = dict(rng.choice(_ROPE))
    if rng.random() < 0.4:
        config["sparse_config"] = dict(_SPARSE)
    if rng.random() < 0.1:
        more = {
            "sliding_window": 64,
            "use_sliding_window": True,
            "max_window_layers": 1,
            "attention_bias": True,
        }
        config |= more | {"layer_types": ["full_attention", "sliding_attention"], "head_dim": 16}
    config["model_type"] = kind = rng.choice(["minicpm", "llama", "qwen2", "qwen3", "mistral"])
    if kind != "minicpm":
        for name in ("architectures", "scale_emb", "scale_depth", "dim_model_base"):
            del config[name]
    if rng.random() < 0.15:
        table = {"eos_token_id": [1, 2], "temperature": 0.7, "top_p": 0.9, "top_k": 5, "do_sample": True}
        return packed(
            {"config.json": safetensors_bytes()[0], "generation_config.json": mutated_json(rng, table)}
        )
    return packed({"config.json": mutated_json(rng, config)})


def _read_config(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    with np.errstate(all="raise", under="ignore"):
        config = ModelConfig.from_hf(folder)
        if config.head_dim <= 4096:
            RotaryTable(config, min(64, config.max_position_embeddings))


@cache
def _stored() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name) / "m")
        store_prefix(folder, [5, 9, 40])
        return {one: (folder / one).read_bytes() for one in ("config.json", "model.safetensors", FILE)}


def _draw_stored(rng: Random) -> bytes:
    files = dict(_stored())
    content, way = files[FILE], rng.random()
    size = int.from_bytes(content[:8], "little")
    if way < 0.4:
        header = mutated_json(rng, json.loads(content[8 : 8 + size]))
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    elif way < 0.9:
        content = mutated_bytes(rng, content, 900)
    return packed(files | {FILE: content})


def _read_stored(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    open_model(folder)


READERS = [
    Reader(name="stored-prefix", draw=_draw_stored, read=_read_stored),
    Reader(name="gguf", draw=_draw_gguf, read=_read_gguf),
    Reader(name="split-gguf", draw=_draw_split, read=_read_split),
    Reader(name="safetensors", draw=_draw_safetensors, read=_read_folder),
    Reader(name="quantised", draw=_draw_quantised, read=_read_folder),
    Reader(name="config", draw=_draw_config, read=_read_config),
]
