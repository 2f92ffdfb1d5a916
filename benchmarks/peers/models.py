"""The weights that all peers run: a GGUF file, and the same in bf16 as a Hugging Face folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from minicpm4 import zoo
from minicpm4.config import ModelConfig
from minicpm4.evals.random_model import SHAPES, RandomCheckpoint
from minicpm4.formats import open_checkpoint
from minicpm4.formats.bf16 import f32_to_bf16
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from minicpm4.formats.names import expected_tensors, gguf_to_hf
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.model.loader import read_config

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
        packed = checkpoint.load(gguf_to_hf(name))
        assert packed.scales is not None
        rows = packed.shape[0]
        scales = packed.scales.reshape(rows, -1, 1).view(np.uint8).reshape(rows, -1, 2)
        blocks = np.concatenate([scales, packed.codes.reshape(rows, -1, 16)], axis=2)
        tensors.append(OutTensor(name=name, shape=packed.shape, type_id=Q4_0, data=blocks))
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
    real = open_checkpoint(Path(zoo.resolve("smollm2-135m-instruct"))).metadata()
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
    checkpoint = open_checkpoint(gguf)
    config = read_config(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = expected_tensors(config)
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape in shapes.items():
            vector = len(shape) == 1
            values = checkpoint.load_vector(name) if vector else unpack(checkpoint.load(name))
            file.write(f32_to_bf16(np.ascontiguousarray(values)).data)
    (folder / "config.json").write_text(json.dumps(_hf_config(config), indent=1) + "\n", encoding="utf-8")


def _hf_config(config: ModelConfig) -> dict[str, object]:
    assert config.rope_scaling is None
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
    )
    values = {name: getattr(config, name) for name in names}
    fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    return {**fixed, "max_position_embeddings": 1 << 17, "torch_dtype": "bfloat16", **values}
