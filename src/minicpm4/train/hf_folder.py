"""Hugging Face folders, written: config.json, safetensors, tokenizer; muP's scales folded into a Llama.

Matrices that were trained rounded are written so that no value changes (``stored``): ternary ones in
float16, where their scales lie; int4 and int8 ones in float32, for code times scale needs 14 bits and more.
The loader finds the groups again and packs them (``formats/packing.detect_rounded``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.model import SIZES
from minicpm4.config.strict import suggest
from minicpm4.data.tokenizer import TOKENIZER_FILES
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.names import expected_tensors
from minicpm4.train.tensor_files import write_tensors
from minicpm4.train.world import World

__all__ = ["DTYPES", "fold_scales", "hf_config", "stored", "write_folder"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ARCHITECTURES = {
    "minicpm": "MiniCPMForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SAME = ("model_type", *SIZES, "rms_norm_eps", "rope_theta", "tie_word_embeddings")
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json: ``ModelConfig.from_hf`` reads the same configuration from it."""
    found: dict[str, Any] = {"architectures": [_ARCHITECTURES[config.model_type]]}
    found |= {name: getattr(config, name) for name in _SAME}
    found |= {"hidden_act": "silu", "torch_dtype": dtype}
    if config.rope_scaling is not None:
        found["rope_scaling"] = _rope_scaling(config.rope_scaling)
    if config.model_type == "minicpm":
        found |= {name: getattr(config, name) for name in ("scale_emb", "scale_depth", "dim_model_base")}
    elif not _is_plain(config):
        raise ConfigError(
            f"a {config.model_type} model has no place for scale_emb = {config.scale_emb:g}, scale_depth = "
            f"{config.scale_depth:g}, dim_model_base = {config.dim_model_base:g}",
            "fold them in (llama), or use model type minicpm",
        )
    if config.attention_bias and config.model_type != "qwen2":
        found["attention_bias"] = True
    if config.sparse_config is not None:
        found["sparse_config"] = asdict(config.sparse_config)
    found["bos_token_id"] = config.bos_token_id
    found["eos_token_id"] = list(config.eos_token_ids) or None
    return found


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    # What a type does not use is left out: other readers take a given factor for more than it is.
    given: dict[str, Any] = {"rope_type": scaling.rope_type}
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        asked = field.name in _ROPE_KEYS.get(scaling.rope_type, ())
        if value is not None and (asked or value != field.default):
            given[field.name] = list(value) if isinstance(value, tuple) else value
    return given


def _is_plain(config: ModelConfig) -> bool:
    """Whether the three scales do nothing, as in Llama."""
    return (config.scale_emb, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)


def fold_scales(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model without muP's scales: a Llama that gives the same logits.

    With e, r, o the scales of embeddings, residual branches and logits, x the residual stream: x / r takes
    in every branch with weight 1, and an RMSNorm gives the same for it where eps is divided by r^2. So
    embeddings are multiplied by e / r and the head by o; no matrix of a layer changes, and what was ternary
    or int4 stays so. A tied head gets rows of its own unless both factors agree. Raises ConfigError for
    norms of query and key heads, whose eps must stay.
    """
    if config.qk_norm and config.residual_scale != 1.0:
        raise ConfigError(
            "the residual scale of a model with norms of query and key heads cannot be folded",
            "export it without folding",
        )
    into_embed = config.scale_emb / config.residual_scale
    into_head = config.logit_scale
    found = dict(tensors)
    found[_EMBED] = _times(tensors[_EMBED], into_embed)
    tied = config.tie_word_embeddings and into_embed == into_head
    if not tied:
        found[_HEAD] = _times(tensors[_EMBED if config.tie_word_embeddings else _HEAD], into_head)
    folded = replace(
        config,
        model_type="llama" if config.model_type == "minicpm" else config.model_type,
        scale_emb=1.0,
        scale_depth=0.0,  # as Llama's
        dim_model_base=0.0,
        tie_word_embeddings=tied,
        rms_norm_eps=config.rms_norm_eps / config.residual_scale**2,
    )
    return folded, found


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1.0 else (tensor.double() * factor).to(tensor.dtype)


def stored(tensor: Tensor, kind: str | None, dtype: str) -> Tensor:
    """``tensor`` (float32) in the type it is written in. ``kind``: what it was rounded to, None: nothing.
    Vectors stay float32: they are small, and norms matter."""
    if kind in ("int4", "int8"):
        return tensor
    if kind == "ternary":
        half = tensor.half()
        return half if torch.equal(half.float(), tensor) else tensor
    return tensor if tensor.ndim < 2 else tensor.to(_type(dtype))


def _type(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown", suggest(dtype, list(DTYPES)))
    return DTYPES[dtype]


def write_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    world: World | None = None,
) -> None:
    """Write a model folder: ``tensors`` as they are, ``tokenizer``'s files (from a folder that holds them),
    config.json last.

    ``world``: the processes that call this and hold ``tensors`` together; each writes its part
    (train/tensor_files.py). Raises CheckpointError when tensors do not fit the configuration, the folder
    holds weights already, or the disk refuses; ConfigError.
    """
    _type(dtype)
    _check(config, tensors)
    content = hf_config(config, dtype)
    world = world or World()
    try:
        world.first(lambda: _begin(folder, tokenizer))
        write_tensors(folder, "model", tensors, world, _check_finite)
        world.first(lambda: _end(folder, content))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}", "check the place and its free space"
        ) from error


def _begin(folder: Path, tokenizer: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds weights already", "export to another folder")
    _copy_tokenizer(tokenizer, folder)


def _end(folder: Path, content: Mapping[str, Any]) -> None:
    part = folder / "config.json.part"
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / "config.json")


def _check(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    expected = expected_tensors(config)
    if expected.keys() != tensors.keys():
        odd = sorted(expected.keys() ^ tensors.keys())
        raise CheckpointError(f"{len(odd)} tensors are missing or too many, such as {odd[0]}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, the configuration asks for {expected[name]}"
            )


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name} holds a value that is not finite", "export an earlier checkpoint")


def _copy_tokenizer(source: Path | None, folder: Path) -> None:
    if source is None:
        return
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(found):
        raise CheckpointError(f"{source} holds no tokenizer", "it needs tokenizer.json or tokenizer.model")
    for name in found:
        shutil.copyfile(source / name, folder / name)
