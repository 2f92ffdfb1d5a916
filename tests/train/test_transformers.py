"""Folders that transformers runs with the trainer's logits: Llama with muP folded in, and Qwen.

Needs transformers beside torch: CI installs transformers==5.23.0 for this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from minicpm4.config import RopeScaling  # noqa: E402
from minicpm4.formats import QuantSpec  # noqa: E402
from minicpm4.formats.quant import BlockSpec  # noqa: E402
from minicpm4.train.export import export  # noqa: E402
from tests.fixtures.byte_tokenizer import write_tokenizer  # noqa: E402
from tests.train.test_export import close, logits_of, model_of, prompt  # noqa: E402

PLAIN = {"scale_emb": 1.0, "scale_depth": 0.0, "dim_model_base": 0.0}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def reference_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()


def scaling(kind: str, **more: Any) -> RopeScaling:
    return RopeScaling(rope_type=kind, original_max_position_embeddings=256, **more)


CASES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"rope_theta": 500000.0, "rope_scaling": scaling("linear", factor=2.0)},
    {"rope_scaling": scaling("yarn", factor=2.0)},
    {"rope_scaling": scaling("llama3", factor=8.0)},
    {
        "rope_scaling": scaling(
            "longrope",
            short_factor=tuple(1 + i / 8 for i in range(16)),
            long_factor=tuple(1 + i / 8 for i in range(16)),
        )
    },
    {"model_type": "llama", **PLAIN, "tie_word_embeddings": True},
    {"model_type": "qwen2", **PLAIN, "attention_bias": True},
    {"model_type": "qwen3", **PLAIN, "qk_norm": True},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_transformers_has_the_trainers_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, ids = model_of(**changes), prompt()
    export(model, tmp_path / "out", llama=True)
    close(reference_logits(tmp_path / "out", ids), logits_of(model, ids))


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(kind="ternary", group_size=64),
        BlockSpec(kind="ternary", group_size=128),
        QuantSpec(kind="int4", group_size=32),
    ],
    ids=str,
)
def test_rounded_models_run_in_transformers(tmp_path: Path, spec: QuantSpec) -> None:
    model, ids = model_of({"*_proj": spec}), prompt()
    export(model, tmp_path / "out", llama=True)
    close(reference_logits(tmp_path / "out", ids), logits_of(model, ids))


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer", 320)
    export(model_of(), tmp_path / "out", llama=True, tokenizer=tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer.encode("héllo", add_special_tokens=False)) == "héllo"
