"""Small GGUF files for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4.formats.gguf_write import OutTensor, write_gguf

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 40
HEAD_DIM = HIDDEN // HEADS


def metadata(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    """Metadata of the small model; ``changes`` replace keys after the architecture (None removes one).

    Dots in key names are written as double underscores.
    """
    values: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM,
    }
    if arch == "minicpm":
        values |= {"embedding_scale": 12.0, "residual_scale": 1.4 / LAYERS**0.5, "logit_scale": HIDDEN / 32}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    table = {f"{arch}.{key}": value for key, value in values.items() if value is not None}
    tokens = [f"t{i}" for i in range(VOCAB)]
    return {
        "general.architecture": arch,
        **table,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def f32(name: str, array: np.ndarray) -> OutTensor:
    """A float32 tensor."""
    return OutTensor(name=name, shape=array.shape, type_id=0, data=array.astype(np.float32))


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What converters do to q and k of llama: rotary halves become interleaved pairs."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def hf_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the small model by Hugging Face names, tied."""
    rng = np.random.default_rng(seed)
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (HIDDEN,), p + "post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {
            p + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            p + "self_attn.k_proj.weight": (kv, HIDDEN),
        }
        shapes |= {
            p + "self_attn.v_proj.weight": (kv, HIDDEN),
            p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        }
        shapes |= {p + "mlp.gate_proj.weight": (INNER, HIDDEN), p + "mlp.up_proj.weight": (INNER, HIDDEN)}
        shapes |= {p + "mlp.down_proj.weight": (HIDDEN, INNER)}
    shapes["model.norm.weight"] = (HIDDEN,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "model.layers": "blk",
}


def to_gguf(weights: dict[str, np.ndarray], arch: str) -> list[OutTensor]:
    """Name and order weights as a converter does."""
    tensors = []
    for name, array in weights.items():
        if arch in ("llama", "minicpm") and ".q_proj" in name:
            array = permute(array, HEADS)
        if arch in ("llama", "minicpm") and ".k_proj" in name:
            array = permute(array, KV_HEADS)
        for theirs, own in GGUF_NAMES.items():
            name = name.replace(theirs, own)
        tensors.append(f32(name, array))
    return tensors


def write_model(
    path: Path, arch: str = "llama", extra: list[OutTensor] | None = None, **changes: Any
) -> Path:
    """Write the small model and return ``path``."""
    write_gguf(path, metadata(arch, **changes), [*to_gguf(hf_weights(), arch), *(extra or [])])
    return path


def raw_gguf(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    data: bytes = b"",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A GGUF file from raw key and tensor records, with any counts: for files no writer would make."""
    keys, tensors = keys or [], tensors or []
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; ``length`` lies about its size."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    """A metadata record."""
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    """A tensor record; ``dims`` as GGUF lists them, fastest first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)
