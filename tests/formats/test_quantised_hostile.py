"""Quantised folders that are damaged, contradict themselves or say what nobody can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.formats.packing import unpack
from tests.formats.test_quantised import (
    AWQ,
    AWQ_ORDER,
    CT,
    GPTQ,
    NAME,
    STEM,
    drawn,
    equal,
    opened,
    parts,
    put_bits,
    put_zeros,
)


def scheme(**weights: Any) -> dict[str, Any]:
    """compressed-tensors whose only group says so of its weights."""
    return {**CT, "config_groups": {"group_0": {"weights": {"num_bits": 4, **weights}}}}


def packed(**changed: Any) -> dict[str, np.ndarray]:
    codes, _, scales, _ = drawn(6)
    made = {"weight_packed": put_bits(codes, 4, 1), "weight_scale": scales}
    made |= {"weight_shape": np.array([16, 96], np.int64)} | changed
    return {name: one for name, one in made.items() if one is not None}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**GPTQ, "bits": [4]}, "bits"),
        ({**GPTQ, "bits": {"4": 4}}, "bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
        ({**GPTQ, "is_marlin_format": True}, "marlin"),
        ({**GPTQ, "desc_act": True}, "g_idx"),
        ({**AWQ, "version": None, "format": "gemv_fast"}, "gemv_fast"),
        ({**CT, "config_groups": {"a": CT["config_groups"]["group_0"], "b": "FP8"}}, "config_groups"),
        ({**CT, "config_groups": {"a": {"weights": {"num_bits": [4]}}}}, "bits"),
        ({**CT, "transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}}, "transform_config"),
        (scheme(symmetric=False), "weight_zero_point"),
        (scheme(actorder="group"), "weight_g_idx"),
        ({**GPTQ, "bits": 8}, "48 columns are not whole groups of 32, in gptq of 8 bits"),
        ({**GPTQ, "pack_dtype": "int16"}, "pack_dtype int16"),
        (scheme(num_bits=8), r"weight_shape \[16, 96\] with num_bits 8 does not fit"),
        (scheme(strategy="group", group_size=64), "4 bits in groups of 32, but .* num_bits 4, group_size 64"),
        (scheme(group_size=96), "in groups of 32, but .* num_bits 4, group_size 96"),
        (scheme(strategy="channel", group_size=None), "in groups of 32, but .* num_bits 4, strategy channel"),
        (scheme(group_size=-1), "in groups of 32, but .* num_bits 4, strategy channel"),
        (scheme(strategy="channel", group_size=32), "strategy channel and group_size 32 contradict"),
        (scheme(group_size="x"), "group_size 'x'"),
        (
            {**CT, "config_groups": {"a": {"weights": {"num_bits": 4}, "format": "int-quantized"}}},
            "format int",
        ),
        ("gptq", "unknown"),
        ([1], "unknown"),
    ],
)
def test_what_the_configuration_says_is_not_passed_over(tmp_path: Path, config: Any, said: str) -> None:
    """Each would be read wrong, or end in another error than ours."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path, config, packed() if method == "compressed-tensors" else parts())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**GPTQ, "sym": True, "checkpoint_format": "gptq"}, "sym: true and checkpoint_format: gptq"),
        ({**GPTQ, "sym": True, "checkpoint_format": "gptq_v2"}, "sym: true and checkpoint_format: gptq_v2"),
        ({**AWQ, "zero_point": False}, "zero_point: false"),
        (scheme(symmetric=True), "symmetric: true"),
    ],
)
@pytest.mark.parametrize("scattered", [False, True])
def test_zero_points_of_what_is_said_to_be_symmetric(
    tmp_path: Path, config: dict[str, Any], said: str, scattered: bool
) -> None:
    """They are refused; those at the middle are read, as old files have them."""
    method, version = config["quant_method"], config.get("checkpoint_format")
    order = np.random.default_rng(1).permutation(96) // 32

    def made(zeros: np.ndarray) -> dict[str, np.ndarray]:
        if method == "compressed-tensors":
            more = {"weight_g_idx": order.astype(np.int32)} if scattered else {}
            return packed(weight_zero_point=put_bits(zeros, 4, 0), **more)
        if method == "awq":
            codes, _, scales, _ = drawn(6)
            words = [put_bits(one.T, 4, 1, AWQ_ORDER) for one in (codes, zeros)]
            return {"qweight": words[0], "qzeros": words[1], "scales": scales.T}
        more = {"g_idx": order.astype(np.int32)} if scattered else {}
        return parts(qzeros=put_zeros(zeros, 4, version), **more)

    middle = np.full((16, 3), 8)
    opened(tmp_path, config, made(middle))
    with pytest.raises(CheckpointError, match="other zero points than 8, such as 7") as error:
        opened(tmp_path, config, made(np.where(np.arange(3) == 1, 7, middle)))
    assert NAME in str(error.value) and said in str(error.value) and "config.json" in str(error.value)
    open_kept = {**config, "dynamic": {"+:.*down.*": {"sym": False}}}
    if method == "gptq":  # its pattern says otherwise of some
        opened(tmp_path, open_kept, made(np.where(np.arange(3) == 1, 7, middle)))


def test_each_scheme_is_that_of_the_matrices_that_it_names(tmp_path: Path) -> None:
    """Of one that none names any may be its own."""
    own = {"targets": [STEM[:-1]], "weights": {"num_bits": 4, "strategy": "group", "group_size": 64}}
    other = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}
    eight = {"targets": ["re:.*q_proj"], "weights": {"num_bits": 8, "strategy": "channel", "symmetric": True}}
    said = {**CT, "config_groups": {"a": eight, "b": other}}
    assert str(opened(tmp_path, said, packed()).spec) == "int4-g32"
    with pytest.raises(CheckpointError, match="num_bits 4, group_size 64"):
        opened(tmp_path, {**CT, "config_groups": {"a": own, "b": other}}, packed())
    with pytest.raises(CheckpointError, match="num_bits 8, strategy channel or num_bits 4, group_size 64"):
        opened(tmp_path, {**CT, "config_groups": {"a": eight, "b": {**own, "targets": ["Linear"]}}}, packed())


@pytest.mark.parametrize(
    "said", [{"strategy": "channel"}, {"strategy": "group", "group_size": 128}, {"group_size": -1}]
)
def test_one_scale_for_a_row(tmp_path: Path, said: dict[str, Any]) -> None:
    """As llm-compressor writes W8A16; and of a group that is larger than a row."""
    codes, _, scales, _ = drawn(7, 8, group=96)
    tensors = {"weight_packed": put_bits(codes, 8, 1), "weight_scale": scales}
    tensors["weight_shape"] = np.array([16, 96], np.int64)
    found = opened(tmp_path, scheme(num_bits=8, symmetric=True, **said), tensors)
    assert str(found.spec) == "int8-g96"
    equal(found, (codes - 128) * scales.astype(np.float64))


def test_newer_names_of_the_version_are_read(tmp_path: Path) -> None:
    codes, zeros, scales, weights = drawn(1)
    tensors = {"qweight": put_bits(codes.T, 4, 0), "qzeros": put_bits(zeros.T, 4, 1), "scales": scales.T}
    equal(opened(tmp_path, {**GPTQ, "format": "gptq_v2"}, tensors), weights)


def test_a_matrix_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="twice") as error:
        opened(tmp_path, GPTQ, parts(weight=np.zeros((16, 96), np.float32)))
    assert NAME in str(error.value)


@pytest.mark.parametrize("size", [np.inf, 3e38, -3e38])
def test_scales_that_make_weights_infinite_are_refused(tmp_path: Path, size: float) -> None:
    with pytest.raises(CheckpointError, match="too large"):
        opened(tmp_path, GPTQ, parts(scales=np.full((3, 16), size, np.float32)))


def test_scales_beyond_float16_are_kept_in_float32(tmp_path: Path) -> None:
    found = opened(tmp_path, GPTQ, parts(scales=np.full((3, 16), 1e5, np.float32)))
    assert found.scales is not None and found.scales.dtype == np.float32 and (found.scales == 1e5).all()


def test_damage_of_any_part_is_one_error(tmp_path: Path) -> None:
    """Parts of other shapes and types, absent, or with words of any kind: read, or refused by name."""
    rng = np.random.default_rng(0)
    types = (np.int32, np.int64, np.float16, np.float32)
    refused = 0
    for case in range(300):
        tensors = dict(packed() if case % 2 else parts(g_idx=(np.arange(96) // 32).astype(np.int32)))
        last = list(tensors)[rng.integers(len(tensors))]
        one = tensors[last]
        if case % 6 < 2:
            shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 8, 12, 16, 96], rng.integers(0, 4)))
            tensors[last] = np.zeros(shape, one.dtype)
        elif case % 6 < 4:
            tensors[last] = np.zeros(one.shape, types[rng.integers(len(types))])
        else:
            flat = np.frombuffer(rng.bytes(one.nbytes), one.dtype)
            tensors[last] = flat.reshape(one.shape)
        group = int(rng.choice([-1, 0, 32, 96]))
        folder = tmp_path / str(case)
        folder.mkdir()
        config = CT if case % 2 else {**GPTQ, "group_size": group}
        said = outcome(folder, config, tensors)
        refused += bool(said)
        assert not said or STEM in said, (case, said)
    assert 100 < refused < 300


def outcome(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """What the refusal says; empty: it was read."""
    try:
        found = opened(folder, config, tensors)
    except CheckpointError as error:
        return str(error)
    assert np.isfinite(unpack(found)).all()
    return ""
