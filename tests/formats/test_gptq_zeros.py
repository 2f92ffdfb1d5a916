"""Zero points of GPTQ folders, whose first version its tools raise and lower as words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from minicpm4.config import ModelConfig
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.model.source import open_model
from minicpm4.quantize.export import check_again, write_model
from minicpm4.quantize.parts import stem_of
from minicpm4.quantize.walk import as_floats
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.formats.test_quantised import put_zeros
from tests.formats.test_quantised_written import LAYER, drawn, out, with_zeros


@dataclass
class Zeroed:
    """A model whose layers have zero points, of which the lowest is ``least``."""

    config: ModelConfig
    bits: int
    least: int

    @property
    def stems(self) -> list[str]:
        return ["ends", *map(stem_of, range(self.config.num_hidden_layers))]

    def part(self, stem: str) -> dict[str, PackedTensor]:
        found = {}
        for seed, (name, shape) in enumerate(expected_tensors(self.config).items()):
            if (stem == "ends") == name.startswith("model.layers."):
                continue
            if len(shape) == 1 or stem == "ends":
                found[name] = as_floats(np.full((1, *shape)[-2:], 0.5, np.float32))
            elif f"layers.{int(stem[6:])}." in name:
                plain = drawn(QuantSpec(kind=f"int{self.bits}", group_size=32), *shape, seed)
                found[name] = with_zeros(plain, seed, self.least)
        return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("least", "version"), [(0, "gptq_v2"), (1, "gptq")])
def test_zero_points_of_0_are_written_in_the_second_version(
    tmp_path: Path, bits: int, least: int, version: str
) -> None:
    """In the first they were written without the borrow that GPTQModel and exllama put back; others put back
    none."""
    made = Zeroed(open_model(make_checkpoint(tmp_path / "model")).config, bits, least)
    write_model(made, tmp_path / "out", "gptq", None)
    check_again(made, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["checkpoint_format"] == version
    name = f"{LAYER}self_attn.q_proj."
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    first, last = json.loads(data[8:start])[f"{name}qzeros"]["data_offsets"]
    words = np.frombuffer(data[start + first : start + last], np.int32)
    zeros = out("", made.part(stem_of(0))[f"{name}weight"]).zeros()
    np.testing.assert_array_equal(words, put_zeros(zeros, bits, version).reshape(-1))
