"""The torch view: the engine's logits, gradients by finite differences, and what a Mode changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minicpm4 import LLM  # noqa: E402
from minicpm4.config import SparseConfig  # noqa: E402
from minicpm4.config.rope import RopeScaling  # noqa: E402
from minicpm4.errors import ConfigError  # noqa: E402
from minicpm4.formats import QuantSpec  # noqa: E402
from minicpm4.formats.names import expected_tensors  # noqa: E402
from minicpm4.formats.packing import pack_from_float, unpack  # noqa: E402
from minicpm4.kernels import autograd  # noqa: E402
from minicpm4.kernels.autograd import LowRank  # noqa: E402
from minicpm4.train.hf_folder import write_folder  # noqa: E402
from minicpm4.train.loss import next_token_loss  # noqa: E402
from minicpm4.train.model import Mode, TrainableModel  # noqa: E402
from minicpm4.train.stages import spec_of  # noqa: E402
from tests.fixtures import transformers_folders as theirs  # noqa: E402
from tests.fixtures.random_checkpoint import make_checkpoint  # noqa: E402
from tests.fixtures.tiny import tiny_config  # noqa: E402
from tests.train.batches import Batch, batch  # noqa: E402

torch.set_num_threads(1)
TYPES = ("minicpm", "llama", "qwen2", "qwen3")
SPARSE = {
    "block_size": 16,
    "window_size": 32,
    "topk": 3,
    "kernel_size": 8,
    "kernel_stride": 4,
    "dense_len": -1,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.5 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
SMALL = tiny_config(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    head_dim=4,
    max_position_embeddings=256,
    scale_emb=3.0,
    scale_depth=1.4,
    dim_model_base=8.0,
)
TINY = SparseConfig(kernel_size=4, kernel_stride=2, block_size=4, window_size=8, topk=2, dense_len=-1)


def small(mode: Mode | None = None, seed: int = 0, **changes: Any) -> TrainableModel:
    """A model with weights large enough that every part of it matters."""
    return TrainableModel.new(replace(SMALL, **changes), seed, lambda name, config: 0.3, mode)


def loss_of(model: TrainableModel, given: Batch) -> Any:
    hidden = model(given)
    targets = torch.from_numpy(given.targets)
    found = next_token_loss(hidden, model.head(), targets, scale=model.config.logit_scale)
    return found.total / found.count


def gradients(model: TrainableModel, given: Batch) -> dict[str, Any]:
    model.zero_grad()
    loss_of(model, given).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        t: make_checkpoint(tmp_path_factory.mktemp(t), model_type=t, seed=3, tie=t == "qwen2") for t in TYPES
    }
    shape = {"rope_scaling": LONGROPE, "dtype": "bfloat16", "sharded": True}
    made["longrope"] = make_checkpoint(tmp_path_factory.mktemp("longrope"), tie=True, **shape)
    return made


@pytest.mark.parametrize("name", [*TYPES, "longrope"])
@pytest.mark.parametrize(
    "change", [None, {}, {"lse_approx": True, "dense_len": 120}, {"use_nope": True}], ids=str
)
def test_logits_are_the_engines(folders: dict[str, Path], name: str, change: dict[str, Any] | None) -> None:
    sparse = None if change is None else SPARSE | change
    model = TrainableModel.load(folders[name])
    given = batch([170, 3, 131], model.config.vocab_size)
    model.mode = Mode(sparse=None if sparse is None else SparseConfig(**sparse))
    with torch.no_grad():
        got = model.logits(model(given)).numpy()
    attention = "dense" if sparse is None else "sparse"
    weights = "auto" if name != "longrope" else "bf16"
    with LLM(
        folders[name], attention=attention, sparse=sparse, kv="float32", weights=weights, backend="ref"
    ) as llm:
        want = np.concatenate([llm.logits(ids) for ids in given.documents])
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_logits_are_those_of_the_cpu_kernels(folders: dict[str, Path]) -> None:
    model = TrainableModel.load(folders["minicpm"], Mode(sparse=SparseConfig(**SPARSE)))
    given = batch([400], model.config.vocab_size)
    with torch.no_grad():
        got = model.logits(model(given)).numpy()
    with LLM(folders["minicpm"], attention="sparse", sparse=SPARSE, kv="float32") as llm:
        want = llm.logits(given.ids)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", [*TYPES, "longrope"])
def test_parameters_have_the_checkpoints_names(folders: dict[str, Path], name: str) -> None:
    model = TrainableModel.load(folders[name])
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == expected_tensors(model.config)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    fresh = TrainableModel.new(model.config, 1)
    fresh.load_state_dict(model.state_dict())
    given = batch([20], model.config.vocab_size)
    assert torch.equal(fresh(given), model(given))


def test_new_weights_depend_on_seed_and_name_alone() -> None:
    first, again, other = small(), small(), small(seed=1)
    deeper = small(num_hidden_layers=3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.state_dict()[name])
        assert torch.equal(parameter, deeper.state_dict()[name])
        if parameter.ndim == 2:
            assert not torch.equal(parameter, other.state_dict()[name])
            assert 0.25 < float(parameter.detach().std()) < 0.35
    assert len({float(p.detach().flatten()[0]) for p in first.parameters() if p.ndim == 2}) == 16


@pytest.mark.parametrize("sparse", [None, TINY], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", TYPES)
def test_gradients_of_the_whole_model(kind: str, sparse: SparseConfig | None) -> None:
    """The slope of the loss along random directions, one for each tensor, in float64."""
    kinds = {"model_type": kind, "attention_bias": kind == "qwen2", "qk_norm": kind == "qwen3"}
    model = small(Mode(sparse=sparse), tie_word_embeddings=kind == "llama", **kinds).double()
    given = batch([37, 1, 22], 50)
    found = gradients(model, given)
    generator, eps = torch.Generator().manual_seed(2), 1e-5
    for name, parameter in model.named_parameters():
        way = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        losses = []
        for step in (eps, -2 * eps):
            with torch.no_grad():
                parameter += step * way
                losses.append(float(loss_of(model, given)))
        with torch.no_grad():
            parameter += eps * way
        slope = float((found[name] * way).sum())
        assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("sparse", [None, TINY], ids=["dense", "sparse"])
def test_documents_do_not_see_one_another(sparse: SparseConfig | None) -> None:
    model = small(Mode(sparse=sparse)).double()
    given = batch([40, 7, 33], 50)
    alone = [model(batch_of(ids)) for ids in given.documents]
    torch.testing.assert_close(model(given), torch.cat(alone), rtol=1e-12, atol=1e-12)


def batch_of(ids: Any) -> Batch:
    n = len(ids)
    return Batch(
        ids=ids, targets=ids, positions=np.arange(n, dtype=np.int32), cu_rows=np.array([0, n], np.int32)
    )


@pytest.mark.parametrize("sparse", [None, TINY], ids=["dense", "sparse"])
def test_recomputing_activations_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, sparse: SparseConfig | None
) -> None:
    chosen: list[int] = []
    real = autograd.select_blocks
    monkeypatch.setattr(autograd, "select_blocks", lambda *args: chosen.append(1) or real(*args))
    given = batch([60, 45], 50)
    model = small(Mode(sparse=sparse))
    want = gradients(model, given)
    calls = len(chosen)
    model.mode = replace(model.mode, recompute=True)
    got = gradients(model, given)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert len(chosen) == 2 * calls, "blocks are chosen once, not again when a layer is recomputed"


def test_recomputing_activations_keeps_less() -> None:
    kept = []
    for recompute in (False, True):
        model, total = small(Mode(recompute=recompute), num_hidden_layers=6), 0

        def pack(x: Any) -> Any:
            nonlocal total
            total += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(batch([64], 50))
        kept.append(total)
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sparse", [None, TINY], ids=["dense", "sparse"])
def test_autocast_keeps_masters_and_is_close(sparse: SparseConfig | None, recompute: bool) -> None:
    given = batch([60, 45], 50)
    model = small(Mode(sparse=sparse, recompute=recompute))
    want = gradients(model, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(given)
        model.zero_grad()
        loss_of(model, given).backward()
    assert hidden.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        off = float((parameter.grad - want[name]).norm() / want[name].norm())
        # Rounding changes which blocks are chosen where scores nearly tie, and with them whole gradients.
        assert 0 < off < (0.05 if sparse is None else 0.5), (name, off)


def test_rounded_forward_is_that_of_packed_weights() -> None:
    spec = {
        "mlp.*": QuantSpec(kind="ternary", group_size=64),
        "o_proj": QuantSpec(kind="int4", group_size=32),
    }
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    model, packed = small(Mode(rounding=spec), **shape), small(**shape)
    for name, parameter in packed.named_parameters():
        found = spec_of(name, spec)
        if found is not None:
            parameter.data = torch.from_numpy(unpack(pack_from_float(parameter.detach().numpy(), found)))
    given = batch([50], 50)
    assert torch.equal(model(given), packed(given))
    assert all(float(grad.abs().max()) > 0 for grad in gradients(model, given).values())


def test_low_rank_additions_are_those_of_merged_weights() -> None:
    model, merged = small(), small()
    generator = torch.Generator().manual_seed(3)
    name = "model.layers.1.self_attn.v_proj.weight"
    a, b = torch.randn(3, 16, generator=generator), torch.randn(8, 3, generator=generator).requires_grad_()
    model.low_rank[name] = LowRank(a=a, b=b, scale=0.5)
    merged.get_parameter(name).data += 0.5 * b.detach() @ a
    given = batch([50], 50)
    torch.testing.assert_close(model(given), merged(given), rtol=1e-4, atol=1e-5)
    loss_of(model, given).backward()
    want = gradients(merged, given)[name]
    torch.testing.assert_close(b.grad, 0.5 * want @ a.T, rtol=1e-3, atol=1e-5)


def test_fp8_rounds_projections_alone() -> None:
    model = small(hidden_size=32, intermediate_size=128)
    given = batch([50], 50)
    plain = model(given)
    model.mode = Mode(fp8=True)
    rounded = model(given)
    off = float((rounded - plain).detach().norm() / plain.detach().norm())
    assert 1e-3 < off < 0.2
    assert all(torch.isfinite(grad).all() for grad in gradients(model, given).values())


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("model.layers.3.mlp.up_proj.weight", "mlp.*", True),
        ("model.layers.3.mlp.up_proj.weight", "up_proj", True),
        ("model.layers.3.mlp.up_proj.weight", "layers.3.*", True),
        ("model.layers.3.mlp.up_proj.weight", "self_attn.*", False),
        ("model.embed_tokens.weight", "*", False),
        ("model.embed_tokens.weight", "embed_tokens", True),
        ("lm_head.weight", "lm_*", False),
        ("lm_head.weight", "lm_head", True),
    ],
)
def test_patterns(name: str, pattern: str, fits: bool) -> None:
    spec = QuantSpec(kind="int4", group_size=32)
    assert spec_of(name, {pattern: spec}) == (spec if fits else None)


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'atention'.*fits no matrix"):
        small(Mode(rounding={"atention": QuantSpec(kind="int4", group_size=32)}))


def test_configuration_changes_between_stages() -> None:
    model = small().double()
    given = batch([100], 50)
    before = model(given)
    scaling = RopeScaling(rope_type="linear", factor=4.0)
    model.config = replace(model.config, rope_scaling=scaling, max_position_embeddings=1024)
    assert not torch.allclose(model(given), before)
    with pytest.raises(ConfigError, match="other tensors"):
        model.config = replace(model.config, vocab_size=51)


FOLDERS = [
    *("llama_biased", "minicpm_biased_tied", "mistral_window", "qwen2_window", "qwen3_window"),
    "qwen3_tied_biased",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_biases_and_windows_are_those_of_transformers_and_are_exported(name: str, tmp_path: Path) -> None:
    version = theirs.VERSIONS[-1]
    want, ids = theirs.logits(version, name), np.array(theirs.IDS, np.int32)
    place = {"positions": np.arange(len(ids), dtype=np.int32), "cu_rows": np.array([0, len(ids)], np.int32)}
    given = Batch(ids=ids, targets=np.roll(ids, -1), **place)
    model = TrainableModel.load(theirs.make(tmp_path / "m", version, name))
    with torch.no_grad():
        got = model.logits(model(given)).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    found = gradients(model, given)
    assert all(grad.abs().sum() > 0 for key, grad in found.items() if not key.endswith("k_proj.bias"))
    out = tmp_path / "out"
    write_folder(out, model.config, {key: tensor.detach() for key, tensor in model.named_parameters()})
    with LLM(out, kv="float32", backend="ref") as llm:
        np.testing.assert_allclose(llm.logits(ids), want, atol=1e-4 * np.abs(want).max())


def test_windows_in_parts_are_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents longer than the rows that read their windows together."""
    monkeypatch.setattr(autograd, "WINDOWED_ROWS", 16)
    model, given = small(windows=(7, 40)), batch([100, 3, 41], SMALL.vocab_size)
    parts = gradients(model, given)
    monkeypatch.setattr(autograd, "WINDOWED_ROWS", 1000)
    for name, whole in gradients(model, given).items():
        torch.testing.assert_close(parts[name], whole, atol=1e-6, rtol=1e-4)
