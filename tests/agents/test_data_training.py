"""Conversations that were made are read by a real training run."""

from __future__ import annotations

import json
from pathlib import Path

from minicpm4.agents.mcp.data.talks import Dropped, Talk, write_set
from minicpm4.data.tokenizer import train_tokenizer
from tests.agents.test_data import GLAIVE, TOOLBENCH, XLAM, Run, convert
from tests.agents.test_data_making import REVERSED, makes
from tests.cli.conftest import minicpm, script
from tests.text.call_templates import source_of

__all__ = ["minicpm", "script"]
RECIPE = """
name = "calls"
output = "{run}"
[model.shape]
hidden_size = 64
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 4096
rms_norm_eps = 1e-5
scale_emb = 12.0
scale_depth = 1.4
dim_model_base = 64.0
[tokenizer]
path = "{tokenizer}"
[corpora.talks]
kind = "chat"
paths = ["{talks}"]
[[stages]]
name = "sft"
steps = 3
batch_tokens = 4096
context = 2048
rate = 0.01
data = {{ talks = 1.0 }}
"""


def test_a_training_run_reads_what_was_made(tmp_path: Path, minicpm: Run) -> None:
    found: list[Talk | Dropped] = [makes(tmp_path / "parts", REVERSED)[0]]
    for layout, record in (("xlam", XLAM), ("glaive", GLAIVE), ("toolbench", TOOLBENCH)):
        found += convert(tmp_path, layout, record)
    assert write_set(tmp_path / "out", found).kept == 4
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(["Add 2 and 3, please."] * 20, 300, tokenizer)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings["chat_template"] = source_of("qwen2_5")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = tmp_path / "r.toml"
    talks = tmp_path / "out" / "talks.jsonl"
    recipe.write_text(RECIPE.format(run=tmp_path / "run", tokenizer=tokenizer, talks=talks))
    done = minicpm("train", str(recipe))
    assert done.code == 0, done.err
    lines = [json.loads(one) for one in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [one["loss"] for one in lines if "loss" in one]
    assert len(losses) == 3 and losses[-1] < losses[0]
