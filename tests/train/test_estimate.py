"""The estimate of a dry run against what torch holds: parameters, moments, what the backward keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.data.batch import Batch
from minicpm4.errors import ConfigError
from minicpm4.train.estimate import Cluster, attended, estimate, flops_per_token
from minicpm4.train.footprint import activations, memory, moments, parameters, trained
from minicpm4.train.head_plan import heads_of
from minicpm4.train.recipe import Recipe, model_config
from tests.train.runs import SHAPE, recipe, stage

torch = pytest.importorskip("torch")

from minicpm4.train.extra_head import ExtraHead  # noqa: E402
from minicpm4.train.lora import Lora  # noqa: E402
from minicpm4.train.model import Mode, TrainableModel  # noqa: E402
from minicpm4.train.mtp import MultiToken  # noqa: E402
from minicpm4.train.session import TrainingSession, World  # noqa: E402
from tests.train.batches import batch  # noqa: E402


def config_of(made: Recipe, **changed: Any) -> ModelConfig:
    return replace(model_config(made, 96, {}), **changed)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("mtp", [0.0, 0.3])
def test_parameters_and_moments_are_exact(kind: str, mtp: float) -> None:
    made = recipe(stage(mtp=mtp), optimiser={"kind": kind})
    config = config_of(made)
    session = TrainingSession(made, config, World())
    session.enter(made.stages[0], fresh=True)
    assert sum(p.numel() for p in session.parameters()) == parameters(config, heads_of(made.stages)).total
    session.gradients([Batch(**vars(batch([40, 20], 96)))])
    session.step(0.01)
    shapes = trained(config, heads_of(made.stages))
    held = sum(t.nbytes for t in session.optimiser.tensors().values())
    assert held == moments(shapes, kind)


LORA = {"rank": 4, "targets": ["q_proj", "o_proj", "mlp.*"]}


def test_of_low_rank_pairs_parameters_and_moments_are_exact_and_the_rest_has_neither() -> None:
    made = recipe(stage(lora=LORA), optimiser={"kind": "muon"})
    config, one = config_of(made), made.stages[0]
    session = TrainingSession(made, config, World())
    session.enter(one, fresh=True)
    session.gradients([Batch(**vars(batch([40, 20], 96)))])
    session.step(0.01)
    pairs = sum(p.numel() for p in session.parameters())
    found = memory(made, config, one, 1, 64)
    assert found.weights == 4 * (pairs + parameters(config).total)
    assert found.gradients == 4 * pairs
    assert found.moments == sum(t.nbytes for t in session.optimiser.tensors().values())
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    assert flops_per_token(config, one).products == 4 * (2 * layer + 96 * 64) + 6 * pairs
    two = estimate(made, config, Cluster(gpus=2))[0]
    whole = parameters(config)
    assert two.bytes_moved == 4 * (2 * whole.layers + (96 * 64 + 64) + 2 * pairs) / 2


def kept(model: TrainableModel, lengths: list[int], bf16: bool, heads: Sequence[ExtraHead] = ()) -> int:
    """Bytes of all arrays that a forward keeps for its backward, parameters apart."""
    own = {p.untyped_storage().data_ptr() for part in (model, *heads) for p in part.parameters()}
    found = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    how = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), how:
        given = batch(lengths, 96)
        hidden = model(given)
        ahead = [head(model, given, hidden) for head in heads]
    assert len(ahead) == len(heads)  # held until all is counted
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attention": "sparse"},
        {"fp8": True},
        {"attention": "sparse", "fp8": True},
        {"rounding": {"self_attn.*": "ternary-g32", "mlp.*": "ternary-g32"}},
        {"lora": {"rank": 4}},
        {"lora": LORA},
        {"mtp": 0.3},
        {"mtp": 0.3, "attention": "sparse"},
        {"mtp": 0.3, "fp8": True},
        {"mtp": 0.3, "rounding": {"mlp.*": "ternary-g32", "self_attn.*": "ternary-g32"}},
    ],
)
def test_what_the_backward_keeps_is_known_within_one_percent(precision: str, changed: Any) -> None:
    made = recipe(stage(context=128, **changed), precision=precision)
    # Pairs save the first layer some arrays, for nothing before it is trained: small of many layers.
    config, one = config_of(made, num_hidden_layers=24 if "lora" in changed else 3), made.stages[0]
    sparse = config.sparse_config if one.attention == "sparse" else None
    model = TrainableModel.new(config, 0, mode=Mode(rounding=one.specs, fp8=one.fp8, sparse=sparse))
    if one.lora is not None:
        pairs = Lora(model, one.lora)
        model.add_module("pairs", pairs)  # its parameters do not count either
    # The CPU keeps what a norm gave for the gradient of its weight.
    expected = activations(made, config, one, rows=128, fused_norms=one.lora is not None)
    heads = [MultiToken.new(config, 0)] if one.mtp else []
    assert kept(model, [128], precision == "bf16", heads) == pytest.approx(expected, rel=0.01)


def test_checkpointed_activations_are_inputs_of_layers_and_one_layer() -> None:
    plain, saving = recipe(stage()), recipe(stage(), checkpoint_activations=True)
    config, one = config_of(plain, num_hidden_layers=24), plain.stages[0]
    whole, less = (activations(made, config, one, rows=64) for made in (plain, saving))
    assert less == pytest.approx(whole / 24 + 24 * 64 * 64 * 4, rel=0.03)


def test_tokens_that_queries_read_are_those_that_they_choose() -> None:
    sparse = SparseConfig.from_mapping(SHAPE["sparse_config"])
    config = config_of(recipe(), sparse_config=sparse, max_position_embeddings=512)
    one = recipe(stage(attention="sparse", context=333, batch_tokens=333, micro_tokens=0)).stages[0]
    size, read = sparse.block_size, 0
    for position in range(333):
        others = sparse.num_selected(position) - 1
        read += others * size + position % size + 1
    assert attended(config, one)[0] == pytest.approx(read / 333)
    assert attended(config, replace(one, attention="dense"))[0] == 167


def test_operations_are_six_a_weight_and_attention() -> None:
    made = recipe(stage(), checkpoint_activations=True)
    config, one = config_of(made), made.stages[0]
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    found = flops_per_token(config, one, recompute=True)
    assert found.products == 6 * (2 * layer + 96 * 64)
    assert found.attention == 2 * 12 * 64 * 65 / 2
    assert found.again == pytest.approx((found.products - 6 * 96 * 64) / 3 + found.attention / 3)
    assert found.model == found.products + found.attention


def test_shares_of_processes_add_up_and_odd_numbers_are_refused() -> None:
    made = recipe(stage(micro_tokens=0))
    config = config_of(made)
    one, four = (estimate(made, config, Cluster(gpus=n))[0] for n in (1, 4))
    assert one.memory.gathered == one.bytes_moved == 0
    assert 4 * four.memory.weights == one.memory.weights == 4 * parameters(config).total
    assert four.bytes_moved == 4 * 0.75 * (3 * parameters(config).layers + 2 * (96 * 64 + 64))
    assert one.seconds == pytest.approx(4 * four.seconds)
    with pytest.raises(ConfigError, match="not a multiple"):
        estimate(recipe(stage(micro_tokens=48)), config, Cluster(gpus=1))
