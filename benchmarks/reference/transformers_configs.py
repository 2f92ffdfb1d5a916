"""Make tests/fixtures/transformers/: what transformers makes of configurations, to be compared with ours.

python -m venv refenv && . refenv/bin/activate
pip install torch==2.13.0 && pip install transformers==5.23.0       # and once more with 4.57.6
python benchmarks/reference/transformers_configs.py                 # from anywhere, with each of the two

fields.json           version -> model type -> field -> its default: all that the class's configuration holds
rope_grid.json        (5) a [config.json, context, inverse frequencies, factor of cosines and sines] each
folders-VERSION.json  name -> folder saved by save_pretrained: its JSON files, and of each weight file names,
    rope_grid.json        (5) config.json, context, inverse frequencies, factor of cosines and sines, each
folders-VERSION.npz   name -> float32 logits (tokens, vocabulary), eager attention
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fixtures.transformers_folders import IDS, MULTIPLIERS, SHAPE, draw  # noqa: E402

OUT = ROOT / "tests" / "fixtures" / "transformers"
VERSION = transformers.__version__
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
MIXED = ["sliding_attention", "full_attention"]
# Name -> class, changes to its configuration, most bytes of a shard.
FOLDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "1GB"),
    "llama_tied": ("llama", {"tie_word_embeddings": True}, "1GB"),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}, "1GB"),
    "llama_attention_biased_sharded": ("llama", {"attention_bias": True}, "6KB"),
    "llama_mlp_biased_wide_heads": ("llama", {"mlp_bias": True, "head_dim": 8}, "1GB"),
    "llama_minicpm5": ("llama", {"rope_theta": 5e6, "max_position_embeddings": 131072}, "6KB"),
    "mistral": ("mistral", {"sliding_window": None}, "1GB"),
    "mistral_usual_window": ("mistral", {"tie_word_embeddings": True}, "6KB"),
    "mistral_window": ("mistral", {"sliding_window": 8}, "1GB"),
    "qwen2": ("qwen2", {}, "1GB"),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}, "6KB"),
    "qwen2_window_unused": ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "1GB"),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "1GB",
    ),
    "qwen3": ("qwen3", {"head_dim": 8}, "1GB"),
    "qwen3_tied_biased": (
        "qwen3",
        {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True},
        "6KB",
    ),
    "qwen3_window": (
        "qwen3",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED},
        "1GB",
    ),
    "minicpm": ("llama", {}, "1GB"),
    "minicpm_biased_tied": ("llama", {"attention_bias": True}, "6KB"),
}


def fields() -> None:
    """Add this version's fields to fields.json."""
    file = OUT / "fields.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[VERSION] = {name: json.loads(json.dumps(kind[0]().to_dict())) for name, kind in CLASSES.items()}
    write(file, dict(sorted(known.items())))


def folders() -> None:
    """Save every folder and run its model."""
    found, logits = {}, {}
    for name, (kind, changes, shard) in FOLDERS.items():
        torch.manual_seed(0)
        config_class, model_class = CLASSES[kind]
        changes = dict(changes)
        if VERSION.startswith("5") and "rope_theta" in changes:
            changes["rope_parameters"] = {"rope_type": "default", "rope_theta": changes.pop("rope_theta")}
        minicpm = name.startswith("minicpm")
        tied = minicpm and name.endswith("tied")
        config = config_class(**(SHAPE | {"eos_token_id": 2} | changes), attn_implementation="eager")
        model = model_class(config).float().eval()
        state = {key: draw(key, tuple(value.shape)) for key, value in model.state_dict().items()}
        if config.tie_word_embeddings or tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size=shard)
            found[name] = saved(Path(folder), as_minicpm(config, tied) if minicpm else None, tied)
        if minicpm:
            model.load_state_dict(
                {key: torch.from_numpy(multiplied(key, value)) for key, value in state.items()}
            )
        with torch.no_grad():
            logits[name] = model(torch.tensor([IDS])).logits[0].numpy()
    write(OUT / f"folders-{VERSION}.json", found)
    np.savez_compressed(OUT / f"folders-{VERSION}.npz", **logits)


def saved(folder: Path, config: dict[str, Any] | None, tied: bool) -> dict[str, Any]:
    """What a test needs to make ``folder`` again; with ``config`` in place of config.json, and without a head
    where ``tied``."""
    texts = {file.name: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    if config is not None:
        texts["config.json"] = config
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        header.pop("__metadata__", None)
        named = {name: [entry["shape"], entry["dtype"]] for name, entry in header.items()}
        weights[file.name] = {
            name: one for name, one in named.items() if not (tied and name == "lm_head.weight")
        }
    if tied:
        texts.get("model.safetensors.index.json", {"weight_map": {}})["weight_map"].pop(
            "lm_head.weight", None
        )
    return {"texts": texts, "weights": {name: names for name, names in weights.items() if names}}


def as_minicpm(config: Any, tied: bool) -> dict[str, Any]:
    """config.json in the words of MiniCPM's own code, which comes with its checkpoints."""
    own = {name: getattr(config, name) for name in SHAPE}
    return {
        "_name_or_path": "openbmb/CPM-2B",
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
        },
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.1,
        **own,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "transformers_version": "4.36.0",
        "use_cache": True,
        **MULTIPLIERS,
        **({} if tied else {"tie_word_embeddings": False}),  # its class ties
    }


def multiplied(name: str, value: np.ndarray) -> np.ndarray:
    """The weight of a Llama that computes what a MiniCPM with ``value`` does."""
    scale = 1.0
    if name == "model.embed_tokens.weight":
        scale = MULTIPLIERS["scale_emb"]
    if name == "lm_head.weight":
        scale = MULTIPLIERS["dim_model_base"] / SHAPE["hidden_size"]
    if "o_proj" in name or "down_proj" in name:
        scale = MULTIPLIERS["scale_depth"] / SHAPE["num_hidden_layers"] ** 0.5
    return (value * scale).astype(np.float32)


def rope_grid(count: int = 480) -> None:
    """Draw configurations, and let transformers compute their frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rng = random.Random(18)
    found: list[Any] = []
    while len(found) < count:
        raw = draw_config(rng)
        kind = CLASSES[raw["model_type"]][0]
        config = kind(**json.loads(json.dumps({k: v for k, v in raw.items() if k != "model_type"})))
        rope_type = config.rope_parameters["rope_type"]
        own = config.max_position_embeddings
        original = config.rope_parameters.get("original_max_position_embeddings", own)
        context = rng.choice([16, original, original + 1, own, own + 1, 2 * own])
        if rope_type == "default":
            inverse, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            inverse, factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=context)
        found.append([raw, context, [float(f"{x:.9g}") for x in inverse.tolist()], float(f"{factor:.9g}")])
    write(OUT / "rope_grid.json", found)


def draw_config(rng: random.Random) -> dict[str, Any]:
    """A config.json of random rotary settings, in any of the places where they are looked for."""
    head_dim = rng.choice([8, 12, 16])
    own = rng.choice([64, 256, 1024, 4096, 131072])
    raw: dict[str, Any] = {
        "model_type": rng.choice(["llama", "llama", "mistral", "qwen2", "qwen3"]),
        **(SHAPE | {"head_dim": head_dim, "max_position_embeddings": own}),
    }
    if raw["model_type"] == "mistral":
        raw["sliding_window"] = None
    kind = rng.choice(["default", "linear", "dynamic", "yarn", "yarn", "llama3", "longrope", "longrope"])
    table: dict[str, Any] = {rng.choice(["type", "rope_type"]): kind}
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        table["factor"] = rng.choice([1.0, 2, 2.5, 8.0, 32.0])
    if kind in ("yarn", "longrope") and rng.random() < 0.3:
        table["factor"] = rng.choice([None, 4.0]) if kind == "longrope" else None
    if rng.random() < 0.6 or kind == "dynamic":
        table["original_max_position_embeddings"] = rng.choice([4, 32, 64, 512, 4096])
    if rng.random() < 0.3:
        raw["original_max_position_embeddings"] = rng.choice([16, 64, 2048])
    if kind == "yarn":
        extras = {"beta_fast": [16, 32.0, 0, None], "beta_slow": [1, 2.0, None], "truncate": [True, False]}
        extras |= {"mscale": [1.0, 0.707, 0.0], "mscale_all_dim": [1.0, 0.5, None], "finetuned": [True]}
        table |= {name: rng.choice(values) for name, values in extras.items() if rng.random() < 0.35}
    if kind in ("yarn", "longrope") and rng.random() < 0.25:
        table["attention_factor"] = rng.choice([1.0, 1.3, None])
    if kind == "llama3":
        table |= {"low_freq_factor": rng.choice([1, 1.0, 2.0]), "high_freq_factor": rng.choice([4.0, 8])}
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            table[name] = [round(rng.uniform(1, 9), 3) for _ in range(head_dim // 2)]
    thetas = [1e4, 500000, 1e6, 5e6]
    where = rng.choice(["nowhere", "top", "table", "both"])
    if where in ("top", "both"):
        raw["rope_theta"] = rng.choice(thetas)
    if where in ("table", "both"):
        table["rope_theta"] = rng.choice(thetas)
    place = rng.choice(["rope_scaling", "rope_scaling", "rope_parameters", "two"])
    if place != "two":
        raw[place] = table
        other = {"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}[place]
        if rng.random() < 0.3:
            raw[other] = None
        return raw
    raw["rope_scaling"] = table
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": rng.choice(thetas)}
    return raw


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, separators=(",", ":"), sort_keys=False) + "\n")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    fields()
    folders()
    if VERSION.startswith("5"):
        rope_grid()
