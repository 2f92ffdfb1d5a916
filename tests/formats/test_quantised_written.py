"""Quantised folders that are written: bytes worked out by hand, read again bit for bit, or refused."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats import open_checkpoint
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.formats.quantised_config import check_writable, quantisation
from minicpm4.formats.quantised_write import QUANTISED, OutMatrix, quantised_sources
from minicpm4.formats.safetensors_write import write_set
from minicpm4.quantize.grid import pack
from tests.formats.test_quantised import AWQ_ORDER, put_bits
from tests.formats.test_quantised_marlin import by_hand, thread_scales

LAYER = "model.layers.0."
NAME = f"{LAYER}mlp.down_proj.weight"
ATTENTION = [f"{LAYER}self_attn.{one}_proj.weight" for one in "qkv"]


def drawn(spec: QuantSpec, rows: int, columns: int, seed: int = 0, half: bool = True) -> PackedTensor:
    """Any numbers of a kind, with scales of either sign."""
    rng = np.random.default_rng(seed)
    row = spec.row
    numbers = rng.integers(int(row.least), int(row.most) + 1, (rows, columns)).astype(np.float32)
    scales = (rng.standard_normal((rows, columns // spec.group_size)) * 0.1).astype(np.float16)
    scales = scales.astype(np.float32)
    return pack(numbers, scales if half else scales * np.float32(1 + 2**-20), spec)


def with_zeros(tensor: PackedTensor, seed: int, least: int = 0) -> PackedTensor:
    """Any codes of as many bits, and offsets that are zero points, of a matrix that has none."""
    rng, row = np.random.default_rng(seed), tensor.spec.row
    codes = rng.integers(0, 1 << row.bits, tensor.shape)
    zeros = rng.integers(least, 1 << row.bits, tensor.scales.shape)
    lower = 0 if row.zero else 128
    return PackedTensor(
        spec=tensor.spec,
        shape=tensor.shape,
        codes=row.pack((codes - lower).astype(row.codes)),
        scales=tensor.scales,
        offsets=(-(zeros - lower) * tensor.scales.astype(np.float32)).astype(np.float32),
    )


def out(name: str, tensor: PackedTensor) -> OutMatrix:
    return OutMatrix.of(name, tensor, lambda: tensor)


def arrays(layout: str, matrices: dict[str, PackedTensor]) -> dict[str, np.ndarray]:
    sources = quantised_sources(layout, [out(*one) for one in matrices.items()])
    return {name: source.read() for name, source in sources.items()}


def again(folder: Path, layout: str, matrices: dict[str, PackedTensor], **model: Any) -> Any:
    """A folder with these matrices, opened."""
    sources = quantised_sources(layout, [out(*one) for one in matrices.items()])
    write_set(folder, "model", sources)
    shifted = [name for name, one in matrices.items() if one.offsets is not None]
    said = quantisation(layout, {name: one.spec for name, one in matrices.items()}, (), shifted)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **said, **model}))
    return open_checkpoint(folder)


def numbers(tensor: PackedTensor) -> np.ndarray:
    row = tensor.spec.row
    return row.numbers(row.unpack(tensor.codes), False).astype(int)


def test_awq_by_hand() -> None:
    tensor = drawn(QuantSpec(kind="int4", group_size=32), 16, 64)
    found = arrays("awq", {NAME: tensor})
    codes = numbers(tensor) + 8
    # Of the first eight outputs of input 0, lowest bits first: 0, 2, 4, 6, 1, 3, 5, 7.
    first = sum(int(codes[output, 0]) << 4 * i for i, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
    assert found[f"{LAYER}mlp.down_proj.qweight"].view(np.uint32)[0, 0] == first
    np.testing.assert_array_equal(found[f"{LAYER}mlp.down_proj.qweight"], put_bits(codes.T, 4, 1, AWQ_ORDER))
    assert (found[f"{LAYER}mlp.down_proj.qzeros"].view(np.uint32) == 0x88888888).all()
    np.testing.assert_array_equal(found[f"{LAYER}mlp.down_proj.scales"], tensor.scales.T)
    assert {one.shape for one in found.values()} == {(64, 2), (2, 2), (2, 16)}


@pytest.mark.parametrize(("kind", "bits", "middle"), [("int4", 4, 8), ("int8", 8, 128), ("ternary", 2, 1)])
def test_mlx_by_hand(kind: str, bits: int, middle: int) -> None:
    tensor = drawn(QuantSpec(kind=kind, group_size=64), 8, 128)
    found = arrays("mlx", {NAME: tensor})
    codes, each = numbers(tensor) + middle, 32 // bits
    first = sum(int(codes[0, i]) << bits * i for i in range(each))
    words = found[NAME]
    assert words.dtype == np.uint32 and words.shape == (8, 128 // each) and words[0, 0] == first
    np.testing.assert_array_equal(words.view(np.int32), put_bits(codes, bits, 1))
    np.testing.assert_array_equal(found[f"{LAYER}mlp.down_proj.scales"], tensor.scales)
    wanted = -middle * tensor.scales.astype(np.float32)
    np.testing.assert_array_equal(found[f"{LAYER}mlp.down_proj.biases"].astype(np.float32), wanted)
    assert found[f"{LAYER}mlp.down_proj.biases"].dtype == np.float16


def test_marlin_by_hand() -> None:
    spec = QuantSpec(kind="int4", group_size=128)
    rows = zip(ATTENTION, (64, 32, 32), strict=True)
    parts = {name: drawn(spec, n, 256, n + i) for i, (name, n) in enumerate(rows)}
    found = arrays("marlin", parts)
    codes = np.concatenate([numbers(one) + 8 for one in parts.values()])
    scales = np.concatenate([one.scales for one in parts.values()])
    assert set(found) == {f"{LAYER}self_attn.qkv_proj.{last}" for last in ("qweight", "scales")}
    np.testing.assert_array_equal(found[f"{LAYER}self_attn.qkv_proj.qweight"], by_hand(codes.T))
    np.testing.assert_array_equal(found[f"{LAYER}self_attn.qkv_proj.scales"], thread_scales(scales.T))


@st.composite
def models(draw: st.DrawFn) -> tuple[str, dict[str, PackedTensor], dict[str, int]]:
    """A layout, some matrices that it has a place for, and the heads of the model."""
    layout = draw(st.sampled_from(QUANTISED))
    kinds = {"awq": ["int4"], "marlin": ["int4"], "mlx": ["int4", "int8", "ternary"]}
    kind = draw(st.sampled_from(kinds.get(layout, ["int4", "int8"])))
    sizes = {"marlin": [128], "mlx": [64, 128]}.get(layout, [64, 96, 192])
    spec = QuantSpec(kind=kind, group_size=draw(st.sampled_from(sizes)))
    least = {"gptq": 8, "awq": 8, "marlin": 64}.get(layout, 1)
    columns, seed = spec.group_size * draw(st.integers(1, 4)), draw(st.integers(0, 1 << 30))
    if not spec.fits(columns):
        columns *= 2
    half = layout in ("awq", "marlin") or draw(st.booleans())
    heads = {"num_attention_heads": draw(st.integers(1, 6)), "num_key_value_heads": draw(st.integers(1, 3))}
    rows = {NAME: least * draw(st.integers(1, 5))}
    if layout == "marlin":
        size = 64  # of a head: any number of them fills blocks
        counts = [heads["num_attention_heads"], *[heads["num_key_value_heads"]] * 2]
        rows |= {name: size * count for name, count in zip(ATTENTION, counts, strict=True)}
    made = {name: drawn(spec, n, columns, seed + i, half) for i, (name, n) in enumerate(rows.items())}
    if layout != "marlin" and kind != "ternary" and half and draw(st.booleans()):
        made = {name: with_zeros(one, seed) for name, one in made.items()}
    return layout, made, heads


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(models())
def test_what_is_written_is_read_bit_for_bit(
    case: tuple[str, dict[str, PackedTensor], dict[str, int]],
) -> None:
    layout, matrices, heads = case
    with tempfile.TemporaryDirectory() as name:
        found = again(Path(name), layout, matrices, **heads)
        assert found.tensors.keys() == matrices.keys()
        for one, wanted in matrices.items():
            tensor = found.load(one)
            assert tensor.spec.group_size == wanted.spec.group_size
            np.testing.assert_array_equal(unpack(tensor), unpack(wanted))
            if wanted.offsets is None:
                assert tensor.offsets is None
                np.testing.assert_array_equal(numbers(tensor), numbers(wanted))
            np.testing.assert_array_equal(tensor.scales, wanted.scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_by_hand(bits: int) -> None:
    """Weights about 3 and 0: GPTQ stores 2 and, as words, 1 less; AWQ and compressed-tensors 3 and 0."""
    spec, lower = QuantSpec(kind=f"int{bits}", group_size=32), 128 * (bits == 8)
    row, each = spec.row, 32 // bits
    zeros = np.array([[3, 0]] * 8)
    tensor = PackedTensor(
        spec=spec,
        shape=(8, 64),
        codes=row.pack(np.full((8, 64), 5 - lower, row.codes)),
        scales=np.full((8, 2), 0.5, np.float16),
        offsets=(-(zeros - lower) * 0.5).astype(np.float32),
    )
    assert (unpack(tensor)[0, [0, 63]] == (1.0, 2.5)).all()
    stem = NAME.removesuffix("weight")
    found = arrays("gptq", {NAME: tensor})[f"{stem}qzeros"].view(np.uint32)
    ones = sum(1 << bits * i for i in range(each))
    assert (found[0] == 2 * ones).all() and (found[1] == (1 << 32) - ones).all()
    found = arrays("compressed-tensors", {NAME: tensor})[f"{stem}weight_zero_point"].view(np.uint32)
    assert found.shape == (8 // each, 2)
    assert (found == [sum(code << bits * i for i in range(each)) for code in (3, 0)]).all()
    if bits == 4:
        assert arrays("awq", {NAME: tensor})[f"{stem}qzeros"].view(np.uint32).tolist() == [[0x33333333], [0]]
    assert (arrays("mlx", {NAME: tensor})[f"{stem}biases"] == [-1.5, 0]).all()


@pytest.mark.parametrize("zero", [0.01, -1, 16])
@pytest.mark.parametrize("layout", [one for one in QUANTISED if one != "mlx"])
def test_offsets_that_are_no_zero_points_are_refused(layout: str, zero: float) -> None:
    plain = drawn(QuantSpec(kind="int4", group_size=128), 64, 128)
    assert plain.scales is not None
    offsets = -zero * plain.scales.astype(np.float32)
    tensor = PackedTensor(
        spec=plain.spec,
        shape=plain.shape,
        codes=plain.codes,
        scales=plain.scales,
        offsets=offsets,
    )
    with pytest.raises(CheckpointError, match=f"{NAME} has .*zero points"):
        quantised_sources(layout, [out(NAME, tensor)])
    found = arrays("mlx", {NAME: tensor})
    assert (found[f"{LAYER}mlp.down_proj.biases"] == offsets).all()


def test_the_configuration_says_which_have_zero_points() -> None:
    formats = {name: QuantSpec(kind="int4", group_size=64) for name in ATTENTION}
    said = quantisation("compressed-tensors", formats, (), ATTENTION[:1])["quantization_config"]
    groups = said["config_groups"].values()
    assert [one["weights"]["symmetric"] for one in groups] == [False, True]
    assert [len(one["targets"]) for one in groups] == [1, 2]
    for shifted in ((), ATTENTION):
        said = quantisation("gptq", formats, (), shifted)["quantization_config"]
        assert said["sym"] is not bool(shifted)


def test_scales_whose_offsets_float16_does_not_hold_become_float32(tmp_path: Path) -> None:
    spec = QuantSpec(kind="int8", group_size=64)
    tensor = pack(np.ones((1, 64), np.float32), np.full((1, 1), 1000, np.float32), spec)
    found = again(tmp_path, "mlx", {NAME: tensor}).load(NAME)
    assert found.offsets is None and (unpack(found) == 1000).all()


@pytest.mark.parametrize("layout", ["awq", "marlin"])
def test_scales_beyond_float16_are_refused(layout: str) -> None:
    tensor = drawn(QuantSpec(kind="int4", group_size=128), 64, 128, half=False)
    with pytest.raises(CheckpointError, match=f"{NAME} has a scale that float16 does not hold, as {layout}"):
        quantised_sources(layout, [out(NAME, tensor)])


def specs(**more: str) -> dict[str, QuantSpec]:
    """Formats of the matrices of a layer; ``more``: by the first letter of a name."""
    names = [*ATTENTION, f"{LAYER}self_attn.o_proj.weight"]
    names += [f"{LAYER}mlp.{one}_proj.weight" for one in ("gate", "up", "down")]
    found = {name: QuantSpec(kind="int4", group_size=128) for name in names}
    for name, text in more.items():
        kind, group = text.split("-g")
        full = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "down": NAME}[name]
        found[full] = QuantSpec(kind=kind, group_size=int(group))
    return found


def shapes(**rows: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = dict.fromkeys(specs(), (128, 128))
    found |= {"model.embed_tokens.weight": (128, 128), "lm_head.weight": (128, 128)}
    found |= {f"{LAYER}input_layernorm.weight": (128,), "model.norm.weight": (128,)}
    return found | {name: (n, 128) for name, n in rows.items()}


@pytest.mark.parametrize(
    ("layout", "formats", "rows", "said"),
    [
        ("awq", {"down": "int8-g64"}, {}, r"awq has no place for .*down_proj.* it holds int4"),
        ("awq", {"embed": "int4-g64"}, {}, "leave embeddings as they are"),
        ("awq", {"head": "int4-g64"}, {}, "leave the head float"),
        ("awq", {}, {NAME: 12}, r"12 rows do not fill its words\. leave as floats.*down_proj=float"),
        ("gptq", {}, {NAME: 12}, "12 rows do not fill its words"),
        ("gptq", {"down": "ternary-g64"}, {}, "it holds int4 and int8"),
        ("marlin", {"down": "int4-g64"}, {}, "its groups are of 128"),
        ("marlin", {}, {NAME: 96}, f"no place for the 96 rows of {NAME}, no multiple of 64"),
        ("marlin", {}, {ATTENTION[1]: 32}, r"the 288 rows of .*q_proj.weight with k_proj and v_proj"),
        ("mlx", {"down": "int4-g96"}, {}, "its groups are of 32 or 64 or 128"),
    ],
)
def test_what_a_layout_has_no_place_for_is_named(
    layout: str, formats: dict[str, str], rows: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_writable(layout, specs(**formats), shapes(**rows))


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight"])
def test_marlin_drops_nothing(name: str) -> None:
    """CPM.cu's converter leaves these out, and says nothing."""
    check_writable("marlin", specs(), shapes())
    with pytest.raises(ConfigError, match=f"marlin has no place for {LAYER}{name}"):
        check_writable("marlin", specs(), shapes() | {LAYER + name: (128,)})


def test_several_formats_stand_in_one_folder_of_compressed_tensors() -> None:
    formats = {
        "a.weight": QuantSpec(kind="int4", group_size=64),
        "b.weight": QuantSpec(kind="int8", group_size=32),
    }
    said = quantisation("compressed-tensors", formats, ["c.weight", "model.embed_tokens.weight"])
    groups = said["quantization_config"]["config_groups"].values()
    assert [(g["targets"], g["weights"]["num_bits"], g["weights"]["group_size"]) for g in groups] == [
        (["a"], 4, 64),
        (["b"], 8, 32),
    ]
    # A tied head has no tensor, yet is a layer elsewhere.
    assert said["quantization_config"]["ignore"] == ["c", "lm_head"]
    for layout in ("gptq", "awq", "marlin"):
        with pytest.raises(ConfigError, match="one format"):
            quantisation(layout, formats, ())


def test_floats_inside_layers() -> None:
    one = {NAME: QuantSpec(kind="int4", group_size=128)}
    for layout in ("gptq", "marlin"):
        with pytest.raises(ConfigError, match=f"readers of {layout} take every matrix of a layer"):
            quantisation(layout, one, ATTENTION)
    said = quantisation("awq", one, [*ATTENTION, "lm_head.weight"])["quantization_config"]
    assert said["modules_to_not_convert"] == sorted(name.removesuffix(".weight") for name in ATTENTION)
    assert (said["quant_method"], said["version"], said["bits"], said["group_size"]) == (
        "awq",
        "gemm",
        4,
        128,
    )


def test_mlx_says_the_format_of_most_and_of_others() -> None:
    said = quantisation("mlx", specs(embed="int8-g64", down="ternary-g64"), ())
    assert (
        said["quantization"]
        == said["quantization_config"]
        == {
            "group_size": 128,
            "bits": 4,
            "mode": "affine",
            "model.embed_tokens": {"group_size": 64, "bits": 8, "mode": "affine"},
            NAME.removesuffix(".weight"): {"group_size": 64, "bits": 2, "mode": "affine"},
        }
    )


@pytest.mark.parametrize("layout", QUANTISED)
def test_little_memory_beside_a_matrix(tmp_path: Path, layout: str) -> None:
    """Writing takes a few copies of the codes as bytes, reading a few MB beside what is made."""
    tensor = drawn(QuantSpec(kind="int4", group_size=128), 4096, 1024)
    found = again(tmp_path, layout, {NAME: tensor}, num_attention_heads=1)
    written = peak(lambda: [one.read() for one in quantised_sources(layout, [out(NAME, tensor)]).values()])
    assert written < 4 * 4096 * 1024
    assert peak(lambda: found.load(NAME)) < tensor.nbytes + (4 << 20)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` takes at a time."""
    tracemalloc.start()
    kept = work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return most
