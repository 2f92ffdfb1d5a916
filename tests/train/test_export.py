"""Exports: the engine has the trainer's logits, finds packed formats again, and folding changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minicpm4 import LLM  # noqa: E402
from minicpm4.config import ModelConfig, RopeScaling, SparseConfig  # noqa: E402
from minicpm4.errors import CheckpointError, ConfigError  # noqa: E402
from minicpm4.formats import QuantSpec, open_checkpoint  # noqa: E402
from minicpm4.formats.hf_write import hf_config  # noqa: E402
from minicpm4.formats.packing import unpack  # noqa: E402
from minicpm4.formats.quant import BlockSpec  # noqa: E402
from minicpm4.train.export import export, final_tensors  # noqa: E402
from minicpm4.train.model import Mode, TrainableModel  # noqa: E402
from tests.fixtures.byte_tokenizer import write_tokenizer  # noqa: E402
from tests.fixtures.loading import load_model  # noqa: E402
from tests.fixtures.tiny import tiny_config  # noqa: E402
from tests.train.batches import batch  # noqa: E402

CONFIG = tiny_config(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    head_dim=32,
    rms_norm_eps=1e-3,  # large, so that a fold that forgets it is seen
    scale_emb=12.0,
    scale_depth=1.4,
    dim_model_base=32.0,
    bos_token_id=256,
    eos_token_ids=(257, 259),
)
# (how matrices are rounded in training, what the loader says it found, for 21 matrices of layers)
ROUNDINGS: list[tuple[dict[str, QuantSpec], str]] = [
    ({}, "23 matrices f32"),
    ({"*_proj": QuantSpec(kind="ternary", group_size=64)}, "21 matrices F16 as ternary-g64"),
    ({"*_proj": QuantSpec(kind="ternary", group_size=32)}, "21 matrices F16 as ternary-g32"),
    ({"*_proj": BlockSpec(kind="ternary", group_size=128)}, "21 matrices F16 as ternary-g128"),
    ({"*_proj": QuantSpec(kind="int4", group_size=64)}, "21 matrices F32 as int4-g64"),
    ({"*_proj": QuantSpec(kind="int4", group_size=128)}, "21 matrices F32 as int4-g128"),
    ({"*_proj": QuantSpec(kind="int8", group_size=32)}, "21 matrices F32 as int8-g32"),
    (
        {
            "mlp.*": QuantSpec(kind="ternary", group_size=128),
            "self_attn.*": QuantSpec(kind="int4", group_size=32),
        },
        "12 matrices F32 as int4-g32",
    ),
]
IDS = [",".join(map(str, r.values())) or "float" for r, _ in ROUNDINGS]


def model_of(rounding: dict[str, QuantSpec] | None = None, **changes: Any) -> TrainableModel:
    """A model with norms and biases that matter."""
    config = replace(CONFIG, **changes)
    model = TrainableModel.new(config, 1, lambda name, config: 0.1, Mode(rounding=rounding or {}))
    made = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=made)
    return model


def logits_of(model: TrainableModel, ids: np.ndarray) -> np.ndarray:
    given = batch([len(ids)], model.config.vocab_size)
    with torch.no_grad():
        return model.logits(model(replace(given, ids=ids.astype(np.int32)))).numpy()


def prompt(length: int = 70) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, length)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("rounding", "said"), ROUNDINGS, ids=IDS)
@pytest.mark.parametrize("llama", [False, True], ids=["minicpm", "llama"])
def test_the_engine_has_the_trainers_logits(
    tmp_path: Path, rounding: dict[str, QuantSpec], said: str, llama: bool
) -> None:
    """With float32 kernels to 1e-4 whatever the format: rounding is in the weights, and they are the same."""
    model, ids = model_of(rounding), prompt()
    expected = logits_of(model, ids)
    export(model, tmp_path / "out", llama=llama)
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        close(llm.logits(ids), expected)
        assert said in llm.description
    with LLM(tmp_path / "out", threads=1) as llm:  # the best kernels here, and bf16 pages
        close(llm.logits(ids), expected, 0.02)


@pytest.mark.parametrize(("rounding", "said"), ROUNDINGS[1:], ids=IDS[1:])
def test_packed_weights_are_those_of_training_bit_for_bit(
    tmp_path: Path, rounding: dict[str, QuantSpec], said: str
) -> None:
    model = model_of(rounding, tie_word_embeddings=True)
    export(model, tmp_path / "out", dtype="bfloat16")
    tensors, kinds = final_tensors(model)
    loaded = load_model(tmp_path / "out")
    assert said in loaded.notes and len(kinds) == 21
    for linear, name in (
        (loaded.weights.layers[2].feed_forward.down, "model.layers.2.mlp.down_proj.weight"),
        (loaded.weights.layers[0].attention.q, "model.layers.0.self_attn.q_proj.weight"),
    ):
        assert linear.weight.spec.group_size
        np.testing.assert_array_equal(unpack(linear.weight), tensors[name].read())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_round_what_was_not_rounded(tmp_path: Path, dtype: str) -> None:
    model, ids = model_of({"mlp.*": QuantSpec(kind="ternary", group_size=64)}), prompt()
    export(model, tmp_path / "out", dtype=dtype)
    stored = {
        info.dtype for name, info in open_checkpoint(tmp_path / "out").tensors.items() if "proj" in name
    }
    assert stored == {"F16", {"float16": "F16", "bfloat16": "BF16"}[dtype]}
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        close(llm.logits(ids), logits_of(model, ids), {"float16": 3e-3, "bfloat16": 2e-2}[dtype])
        assert "9 matrices F16 as ternary-g64" in llm.description


def test_folding_keeps_every_matrix_of_a_layer(tmp_path: Path) -> None:
    model = model_of(tie_word_embeddings=True)
    export(model, tmp_path / "out", llama=True)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLM"] and not raw["tie_word_embeddings"]
    assert not {"scale_emb", "scale_depth", "dim_model_base"} & raw.keys()
    assert raw["rms_norm_eps"] == pytest.approx(1e-3 / (1.4**2 / 3))
    found = open_checkpoint(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        if ".layers." in name and tensor.ndim == 2:
            np.testing.assert_array_equal(unpack(found.load(name)), tensor.numpy())


@pytest.mark.parametrize(
    "changes", [{"scale_emb": 1.4 / 3**0.5 / 4}, {"model_type": "llama", "scale_emb": 1.0}]
)
def test_a_head_stays_tied_where_it_can(tmp_path: Path, changes: dict[str, Any]) -> None:
    scales = {"scale_depth": 0.0, "dim_model_base": 0.0} if "model_type" in changes else {}
    model, ids = model_of(tie_word_embeddings=True, **(scales | changes)), prompt()
    export(model, tmp_path / "out", llama=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        close(llm.logits(ids), logits_of(model, ids))


@pytest.mark.parametrize("llama", [False, True], ids=["minicpm", "llama"])
def test_sparse_attention_goes_along(tmp_path: Path, llama: bool) -> None:
    sparse = SparseConfig(block_size=16, window_size=32, topk=2, kernel_size=8, kernel_stride=4, dense_len=-1)
    model, ids = model_of(sparse_config=sparse), prompt(200)
    model.mode = Mode(sparse=sparse)
    export(model, tmp_path / "out", llama=llama)
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        assert llm.sparse == sparse
        close(llm.logits(ids), logits_of(model, ids))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "llama", "scale_emb": 1.0, "scale_depth": 0.0, "dim_model_base": 0.0},
        {
            "sparse_config": SparseConfig(topk=8, dense_len=8192),
            "tie_word_embeddings": True,
            "bos_token_id": None,
        },
        {"eos_token_ids": ()},
        *(
            {"rope_scaling": RopeScaling(rope_type=kind, original_max_position_embeddings=256, **more)}
            for kind, more in (
                ("linear", {"factor": 2.0}),
                ("yarn", {"factor": 4.0, "beta_fast": 16.0, "truncate": False}),
                ("llama3", {"factor": 8.0, "low_freq_factor": 2.0}),
                ("longrope", {"short_factor": (1.0,) * 16, "long_factor": (2.0,) * 16}),
            )
        ),
    ],
)
def test_config_json_reads_as_the_same_configuration(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    assert ModelConfig.from_hf(json.loads(json.dumps(hf_config(config)))) == config


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_models_keep_their_type(tmp_path: Path, kind: str) -> None:
    more = {"attention_bias": kind == "qwen2", "qk_norm": kind == "qwen3"}
    model = model_of(model_type=kind, scale_emb=1.0, scale_depth=0.0, dim_model_base=0.0, **more)
    export(model, tmp_path / "out", llama=True)
    assert ModelConfig.from_hf(tmp_path / "out") == model.config
    ids = prompt()
    with LLM(tmp_path / "out", kv="float32", isa="scalar", threads=1) as llm:
        close(llm.logits(ids), logits_of(model, ids))


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer", 320)
    export(model_of(), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    with LLM(tmp_path / "out", threads=1) as llm:
        assert (
            llm.tokenizer.encode("hello") and llm.chat([{"role": "user", "content": "hi"}]).text is not None
        )
    # The template ends a turn with a token that no file of the tokenizer names.
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    settings = json.dumps({"eos_token": "</s>", "chat_template": template})
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(settings)
    export(model_of(eos_token_ids=(257,)), tmp_path / "ends", tokenizer=tmp_path / "tokenizer")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "ends" / name).read_text())["eos_token_id"] == [257, 259]
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        export(model_of(), tmp_path / "other", tokenizer=tmp_path / "tokenizer")


def test_many_files_and_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minicpm4.formats import safetensors_write

    monkeypatch.setattr(safetensors_write, "MAX_FILE", 300_000)
    model = model_of()
    export(model, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert not list((tmp_path / "out").glob("*.part"))
    again = TrainableModel.load(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_what_must_not_be_written_is_refused(tmp_path: Path) -> None:
    model = model_of()
    export(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds weights already"):
        export(model, tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        export(model, tmp_path / "bf16", dtype="bfloat")
    model.state_dict()["model.norm.weight"][5] = float("nan")
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds a value that is not finite"):
        export(model, tmp_path / "nan")
    plain = replace(CONFIG, model_type="llama")
    with pytest.raises(ConfigError, match="a llama model has no place for scale_emb = 12"):
        hf_config(plain)
