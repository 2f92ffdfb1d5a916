"""Weights replaced in place are those of a fresh load; what fails leaves the old ones, or none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.evals.random_model import RandomCheckpoint
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.ref import RefOps
from minicpm4.model.source import open_model
from minicpm4.model.weight_set import WeightSet
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.driver import Driver
from tests.model.kept import assert_same

IDS = list(range(4, 60))
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def made(seed: int, **shape: Any) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp("model"), seed=seed, **shape)

    return made


def refill(held: WeightSet, folder: Path) -> None:
    source = open_model(folder)
    held.refill(source.checkpoint, source.config)


def logits(ops: OpTable, held: WeightSet) -> np.ndarray:
    return Driver(ops, held.weights, context=64).feed(IDS)


@pytest.mark.parametrize("weights", ["auto", "bf16", "int8", "int4", "ternary"])
def test_they_are_those_of_a_fresh_load(ops: OpTable, make: Make, weights: str) -> None:
    ids = {"num_hidden_layers": 2, "dtype": "bfloat16", "tie": weights == "int8"}
    first, second = make(1, **ids), make(2, **ids)
    held, fresh = (load_model(folder, weights, ops) for folder in (first, second))
    before = logits(ops, held)
    for folder, version in ((second, 1), (first, 2), (second, 3)):
        refill(held, folder)
        assert held.version == held.weights.version == version
    assert_same(held, fresh)
    after = logits(ops, held)
    np.testing.assert_array_equal(after, logits(ops, fresh))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_biases_and_norms_of_heads_are_replaced(ops: OpTable, make: Make, kind: str) -> None:
    first, second = make(1, model_type=kind), make(2, model_type=kind)
    held, fresh = load_model(first, ops=ops), load_model(second, ops=ops)
    logits(ops, held)
    refill(held, second)
    for (name, ours), (_, theirs) in zip(
        held.weights.named_vectors(), fresh.weights.named_vectors(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    np.testing.assert_array_equal(logits(ops, held), logits(ops, fresh))


def test_arrays_stay_where_they_are_once_they_are_our_own(make: Make) -> None:
    held = load_model(make(1))
    assert not any(matrix.codes.flags.writeable for matrix in held.weights.matrices())  # views into the file
    refill(held, make(2))
    places = [matrix.codes.ctypes.data for matrix in held.weights.matrices()]
    refill(held, make(3))
    assert [matrix.codes.ctypes.data for matrix in held.weights.matrices()] == places
    assert all(matrix.codes.flags.writeable for matrix in held.weights.matrices())


def test_trained_rounded_weights_are_found_again(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from minicpm4.train.export import export
    from tests.train.test_export import model_of

    model = model_of({"*_proj": QuantSpec(kind="ternary", group_size=64)})
    export(model, tmp_path / "1")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    export(model, tmp_path / "2")
    held, fresh = load_model(tmp_path / "1"), load_model(tmp_path / "2")
    refill(held, tmp_path / "2")
    assert_same(held, fresh)
    assert "ternary-g64" in held.weights.formats()


DIFFERENT = {
    "deeper": ({"num_hidden_layers": 3}, "num_hidden_layers is 3, not 2"),
    "wider": ({"intermediate_size": 256}, "intermediate_size is 256, not 128"),
    "another theta": ({"rope_theta": 5000.0}, "rope_theta is 5000.0, not 10000.0"),
    "other floats": (
        {"dtype": "bfloat16"},
        r"model.embed_tokens.weight of .* would be held as bf16, it is held as f32",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_model_is_refused_before_anything_changes(make: Make, case: str) -> None:
    shape, message = DIFFERENT[case]
    held = load_model(make(1))
    before = logits(RefOps(), held)
    with pytest.raises(CheckpointError, match=message):
        refill(held, make(2, **shape))
    assert held.version == 0
    np.testing.assert_array_equal(logits(RefOps(), held), before)


def test_a_checkpoint_without_a_config_is_told_by_its_tensors(make: Make) -> None:
    held = load_model(make(1))
    f32 = QuantSpec(kind="f32")
    held.refill(RandomCheckpoint(held.config, lambda name, shape: f32))
    assert held.version == 1
    other = replace(held.config, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"model.layers.2.*no place for it"):
        held.refill(RandomCheckpoint(other, lambda name, shape: f32))
    assert held.version == 1


@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_half_filled_weights_refuse_until_they_are_whole(make: Make, weights: str) -> None:
    first, second = make(1), make(2)
    held = load_model(first, weights)
    source = open_model(second)

    class Damaged(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done == 5:
            raise Damaged

    with pytest.raises(Damaged):
        held.refill(source.checkpoint, source.config, progress)
    with pytest.raises(CheckpointError, match=r"failed halfway.*replace them again"):
        held.version  # noqa: B018
    refill(held, second)
    assert_same(held, load_model(second, weights))


def test_a_damaged_checkpoint_is_named(make: Make) -> None:
    held, second = load_model(make(1), "int8"), make(2)
    source = open_model(second)
    file = second / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()  # the last tensor's last weight
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"not finite"):
        held.refill(source.checkpoint, source.config)
    with pytest.raises(CheckpointError, match="halfway"):
        held.version  # noqa: B018


MEASURE = """
import resource, sys
from pathlib import Path
from minicpm4.kernels.registry import resolve
from minicpm4.model.source import open_model
from tests.fixtures.loading import load_model

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

first, second, weights, ops = *sys.argv[1:4], resolve("cpu")
held, source = load_model(Path(first), weights, ops), open_model(second)
held.refill(source.checkpoint)  # views become arrays
before, most = anonymous(), 0

def progress(done, total):
    global most
    most = max(most, anonymous())

held.refill(source.checkpoint, progress=progress)
print(held.weights.nbytes, max(m.nbytes for m in held.weights.matrices()), before, most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_no_second_copy_is_made(make: Make, weights: str) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "dtype": "bfloat16"}
    folders = [str(make(seed, **shape)) for seed in (1, 2)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *folders, weights], capture_output=True, text=True, check=True
    )
    size, largest, before, most = map(int, done.stdout.split())
    assert size > 25e6
    # Beside the model: a matrix as it is read, in rows and in panels, and the slices it is converted in.
    assert most - before < 4 * largest + (8 << 20) < size
