"""The weights that all peers run: a GGUF file, and the same in bf16 as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.evals.random_model import SHAPES, RandomCheckpoint
from minicpm4.formats import hf_write
from minicpm4.formats.gguf_write import OutTensor, matrix, write_gguf
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.names import expected_tensors, gguf_to_hf
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.tensor_source import as_kind, checkpoint_source
from minicpm4.model.source import open_model

F32, Q4_0 = 0, 2  # GGML type ids
STEMS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)


def write_random_gguf(file: Path) -> None:
    """Write MiniCPM4-0.5B's shape with random weights, all matrices Q4_0, as a Llama.

    MiniCPM's three multipliers are left out: they cost no time, and every engine reads a Llama.
    """
    config = SHAPES["random-minicpm4-0.5b"]
    checkpoint = RandomCheckpoint(config, lambda name, shape: QuantSpec(kind="int4", group_size=32))
    names = [f"blk.{layer}.{stem}.weight" for layer in range(config.num_hidden_layers) for stem in STEMS]
    tensors = []
    for name in ("token_embd.weight", *names, "output_norm.weight"):
        info = checkpoint.tensors[gguf_to_hf(name)]
        if len(info.shape) == 1:
            data = checkpoint.load_vector(gguf_to_hf(name))
            tensors.append(OutTensor(name=name, shape=info.shape, type_id=F32, data=data))
            continue
        tensors.append(matrix(name, checkpoint.load(gguf_to_hf(name)), Q4_0))
    write_gguf(file, _metadata(config), tensors)


def _metadata(config: ModelConfig) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "general.name": "MiniCPM4-0.5B's shape, random weights",
        "general.quantization_version": 2,
        "general.file_type": 2,
        "llama.context_length": 1 << 17,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
        **_vocabulary(config.vocab_size),
    }


def _vocabulary(size: int) -> dict[str, object]:
    """SmolLM2's vocabulary, filled up: OpenVINO GenAI reads no file without one."""
    real = open_model("smollm2-135m-instruct").checkpoint.metadata()
    tokens: list[str] = real["tokenizer.ggml.tokens"]
    names = ("model", "pre", "merges", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
    kept = {f"tokenizer.ggml.{name}": real[f"tokenizer.ggml.{name}"] for name in names}
    more = [f"<extra {index}>" for index in range(size - len(tokens))]
    types = [*real["tokenizer.ggml.token_type"], *[1] * len(more)]
    return {
        **kept,
        "tokenizer.ggml.tokens": [*tokens, *more],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.chat_template": real["tokenizer.chat_template"],
    }


def write_folder(gguf: Path, folder: Path) -> None:
    """Write config.json and model.safetensors with the GGUF's weights, unpacked and rounded to bf16."""
    found = open_model(gguf)
    config = replace(found.config, max_position_embeddings=1 << 17)
    sources = {name: checkpoint_source(found.checkpoint, name) for name in expected_tensors(config)}
    rounded = {name: as_kind(source, KINDS["bf16"]) for name, source in sources.items()}
    hf_write.write_folder(folder, config, rounded, dtype="bfloat16")
