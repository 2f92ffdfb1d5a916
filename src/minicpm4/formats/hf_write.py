"""Hugging Face folders, written: config.json, safetensors, tokenizer; muP's scales folded into a Llama.

Matrices that were trained rounded are written so that no value changes (``stored``): ternary ones in
float16, where their scales lie; int4 and int8 ones in float32, for code times scale needs 14 bits and more.
The loader finds the groups again and packs them (``formats/packing.packed_if_exact``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.config.fields import CLASSES, SIZES
from minicpm4.config.model import MODEL_TYPES
from minicpm4.config.strict import shown, suggest
from minicpm4.config.windows import window_fields
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.files import write_checksums, write_file, write_json
from minicpm4.formats.kinds import KINDS, WeightKind, float_kinds, kind_of
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.formats.packing import row_slices
from minicpm4.formats.safetensors_write import write_set
from minicpm4.formats.target import require_free
from minicpm4.formats.tensor_source import TensorSource, as_kind

__all__ = [
    "begin_folder",
    "check_finite",
    "check_shapes",
    "end_folder",
    "float_kind",
    "fold_scales",
    "folded_factors",
    "hf_config",
    "stored",
    "times",
    "with_end_ids",
    "write_folder",
]

_SAME = ("model_type", *SIZES, "rms_norm_eps", "rope_theta", "tie_word_embeddings")
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json: ``ModelConfig.from_hf`` reads the same configuration from it. Raises
    ConfigError."""
    found: dict[str, Any] = {"architectures": [MODEL_TYPES[config.model_type][0]]}
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
    found |= _biases(config)
    found |= _windows(config)
    if config.sparse_config is not None:
        found["sparse_config"] = asdict(config.sparse_config) | {
            "dense_len": config.sparse_config.dense_below
        }
    found["bos_token_id"] = config.bos_token_id
    found["eos_token_id"] = list(config.eos_token_ids) or None
    return found


def with_end_ids(config: ModelConfig, ends: Iterable[int]) -> ModelConfig:
    """``config`` with the end tokens of a tokenizer beside its own: what ends an answer is known to both."""
    own = [i for i in ends if i < config.vocab_size]
    return replace(config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *own])))


def _biases(config: ModelConfig) -> dict[str, Any]:
    """Which projections have biases, as the class of the model's type says it. Raises ConfigError."""
    kind = config.model_type
    known = CLASSES[kind].biases
    asked = {name: getattr(config, name) for name in ("attention_bias", "output_bias", "mlp_bias")}
    if kind == "qwen2":  # its q, k and v have them, without a word
        no_place = [name for name, one in asked.items() if one != (name == "attention_bias")]
    else:
        no_place = [name for name in ("attention_bias", "mlp_bias") if asked[name] and name not in known]
        no_place += ["output_bias"] if asked["output_bias"] and not asked["attention_bias"] else []
    if no_place:
        raise ConfigError(
            f"a {kind} model's config.json has no place for "
            + ", ".join(f"{name} = {asked[name]}" for name in no_place),
            "use a model type that has it",
        )
    found = {name: True for name in known if asked[name]}
    if found.get("attention_bias") and not asked["output_bias"]:
        found["output_bias"] = False  # our own field: other readers take biases of 0 there, which is the same
    return found


def _windows(config: ModelConfig) -> dict[str, Any]:
    """What says the windows of layers; a llama whose layers all have one is written as a Mistral. Raises
    ConfigError."""
    kinds = {window for window in config.windows if window}
    if not kinds:
        return {}
    if config.model_type in ("qwen2", "qwen3") and len(kinds) == 1:
        return window_fields(config.windows)
    plain = not (config.attention_bias or config.output_bias or config.mlp_bias)
    if config.model_type == "llama" and len(kinds) == 1 and all(config.windows) and plain:
        names = {"architectures": [CLASSES["mistral"].architectures[0]], "model_type": "mistral"}
        return {**names, "sliding_window": max(kinds)}
    raise ConfigError(
        f"a {config.model_type} model's config.json has no place for these sliding windows: "
        f"{shown(config.windows)}",
        "use qwen2 or qwen3, and windows of one size",
    )


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


def folded_factors(config: ModelConfig) -> tuple[float, float]:
    """What ``fold_scales`` multiplies embeddings and head by."""
    return config.scale_emb / config.residual_scale, config.logit_scale


def times(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """``values`` by one of the ``folded_factors``, rounded once."""
    return (values.astype(np.float64) * factor).astype(np.float32)


def fold_scales(
    config: ModelConfig, tensors: Mapping[str, TensorSource]
) -> tuple[ModelConfig, dict[str, TensorSource]]:
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
    into_embed, into_head = folded_factors(config)
    found = dict(tensors)
    found[EMBED] = _times(tensors[EMBED], into_embed)
    tied = config.tie_word_embeddings and into_embed == into_head
    if not tied:
        found[HEAD] = _times(tensors[EMBED if config.tie_word_embeddings else HEAD], into_head)
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


def _times(source: TensorSource, factor: float) -> TensorSource:
    if factor == 1.0:
        return source

    def scaled() -> NDArray[np.float32]:
        values = source.read()
        out = np.empty(values.shape, np.float32)
        for part in row_slices(*values.shape):
            out[part] = times(values[part], factor)
        return out

    return replace(source, make=scaled)


def stored(source: TensorSource, kind: str | None, dtype: str) -> TensorSource:
    """``source`` (float32) in the type it is written in: ``dtype``, as config.json calls it, unless it was
    rounded to ``kind``. Vectors stay float32: they are small, and norms matter. Raises ConfigError."""
    if kind is not None:
        # A scale times a number beyond 1 takes more bits than float16 has.
        return as_kind(source, KINDS["f16"]) if kind_of(kind).reach <= 1 and _fits_half(source) else source
    return source if len(source.shape) < 2 else as_kind(source, float_kind(dtype))


def _fits_half(source: TensorSource) -> bool:
    values = source.read()
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def float_kind(dtype: str) -> WeightKind:
    """The kind that config.json calls ``dtype``. Raises ConfigError."""
    known = {row.dtype: row for row in float_kinds().values()}
    if dtype not in known:
        raise ConfigError(f"dtype {dtype!r} is unknown", suggest(dtype, list(known)))
    return known[dtype]


def write_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, TensorSource],
    *,
    dtype: str = "float32",
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder, a tensor of it in memory: ``tensors`` as they are, the files ``beside`` (a
    tokenizer's, by name), config.json last, which says ``dtype``.

    Raises CheckpointError when tensors do not fit the configuration, are not finite, the folder holds weights
    already, or the disk refuses; ConfigError.
    """
    float_kind(dtype)
    check_shapes(config, {name: source.shape for name, source in tensors.items()})
    content = hf_config(config, dtype)
    try:
        begin_folder(folder, beside or {})
        write_set(folder, "model", tensors, check_finite)
        end_folder(folder, content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}", "check the place and its free space"
        ) from error


def begin_folder(folder: Path, beside: Mapping[str, bytes]) -> None:
    """Make a folder for a model's weights. Raises CheckpointError, OSError."""
    require_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, content, durable=True)


def end_folder(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the checksums of its tensors, then config.json: now the folder is a model. Raises OSError."""
    tensors = (file.name for kind in ("safetensors", "kv") for file in folder.glob(f"*.{kind}"))
    write_checksums(folder, sorted(tensors))
    write_json(folder / "config.json", content, indent=2, durable=True)


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless tensors of ``shapes`` are those of ``config``."""
    expected = expected_tensors(config)
    if expected.keys() != shapes.keys():
        odd = sorted(expected.keys() ^ shapes.keys())
        raise CheckpointError(f"{len(odd)} tensors are missing or too many, such as {odd[0]}")
    for name, shape in shapes.items():
        if tuple(shape) != expected[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(shape)}, the configuration asks for {expected[name]}"
            )


def check_finite(name: str, values: NDArray) -> None:
    """Raise CheckpointError where a value (bfloat16 as uint16) is not finite."""
    row = KINDS["bf16"]
    bad = (values & row.infinity) == row.infinity if values.dtype == row.codes else ~np.isfinite(values)
    if bad.any():
        raise CheckpointError(f"{name} holds a value that is not finite", "export an earlier checkpoint")
