"""Make tests/fixtures/random_reference.npz: float32 logits of small random checkpoints.

    python -m venv refenv && . refenv/bin/activate
    pip install torch==2.13.0 && pip install transformers
    python benchmarks/reference/minicpm_reference.py            # from anywhere

Llama, Qwen2 and Qwen3 are transformers' own classes. MiniCPM is plain_minicpm.py, checked here
against transformers' Llama twice: on Llama's own weights (the special case of no multipliers), and
on MiniCPM weights with the multipliers folded into a Llama's matrices. Checkpoints are not stored;
tests/fixtures/random_cases.py makes them again from seeds. Keys, for every case NAME there:

    NAME_ids     (n,) int32
    NAME_rows    (r,) int32            positions whose logits are kept
    NAME_logits  (r, vocab) float32
    NAME_crc     uint32                random_cases.weights_crc(NAME)
    versions     str
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import plain_minicpm
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.fixtures import random_cases as cases  # noqa: E402
from tests.fixtures.random_checkpoint import CheckpointShape, hf_config, random_weights  # noqa: E402

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
ROWS = (0, 1, 17, 63, 64, 95)


def transformers_logits(weights: dict, config: dict, ids: torch.Tensor) -> torch.Tensor:
    """Return (n, vocab) logits of transformers' own class for config["model_type"]."""
    config_class, model_class = CLASSES[config["model_type"]]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    names += ("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps")
    made = {name: config[name] for name in (*names, "tie_word_embeddings")}
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    made["rope_parameters"] = scaling | {"rope_theta": config["rope_theta"]}
    model = model_class(config_class(**made, attn_implementation="eager")).float().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    assert not unexpected and missing == tied, (missing, unexpected)
    model.tie_weights()
    with torch.inference_mode():
        return model(ids[None]).logits[0]


def fold_into_llama(weights: dict, config: dict) -> tuple[dict, dict]:
    """Return an untied Llama (weights, config) that computes what the MiniCPM does."""
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    folded = {}
    for name, weight in weights.items():
        is_branch_end = "o_proj" in name or "down_proj" in name
        folded[name] = weight * residual if is_branch_end else weight
    embed = weights["model.embed_tokens.weight"]
    folded["model.embed_tokens.weight"] = embed * config["scale_emb"]
    head = weights.get("lm_head.weight", embed)
    folded["lm_head.weight"] = head * (config["dim_model_base"] / config["hidden_size"])
    return folded, config | {"model_type": "llama", "tie_word_embeddings": False}


def no_multipliers(config: dict) -> dict:
    """Return the MiniCPM config that means the same as a Llama's."""
    depth = math.sqrt(config["num_hidden_layers"])
    return config | {"scale_emb": 1.0, "scale_depth": depth, "dim_model_base": config["hidden_size"]}


def reference(weights: dict, config: dict, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return (logits, largest difference to the second opinion; NaN where there is none)."""
    if config["model_type"] == "minicpm":
        logits = plain_minicpm.logits(weights, config, ids)
        second = transformers_logits(*fold_into_llama(weights, config), ids)
        return logits, float((logits - second).abs().max())
    logits = transformers_logits(weights, config, ids)
    if config["model_type"] != "llama" or config["rope_scaling"]:
        return logits, math.nan
    second = plain_minicpm.logits(weights, no_multipliers(config), ids)
    return logits, float((logits - second).abs().max())


def main() -> None:
    torch.set_num_threads(2)
    figures: dict[str, np.ndarray] = {}
    for name, arguments in cases.CASES.items():
        shape = CheckpointShape(**arguments)
        weights = {key: torch.from_numpy(values) for key, values in random_weights(shape)}
        ids = cases.token_ids(name)
        logits, difference = reference(weights, hf_config(shape), torch.from_numpy(ids).long())
        print(f"{name:30} std {float(logits.std()):.3f}, second opinion differs by {difference:.1e}")
        assert not difference > 1e-4, name
        rows = sorted({*ROWS, len(ids) - 1})
        figures[f"{name}_ids"] = ids
        figures[f"{name}_rows"] = np.array(rows, np.int32)
        figures[f"{name}_logits"] = logits[rows].numpy()
        figures[f"{name}_crc"] = np.array(cases.weights_crc(name), np.uint32)
    versions = (f"{package} {version(package)}" for package in ("torch", "transformers"))
    figures["versions"] = np.array(", ".join(versions))
    out = ROOT / "tests" / "fixtures" / "random_reference.npz"
    np.savez_compressed(out, **figures)
    print(f"{out.name}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
