"""The file of a stored prefix: read without trust, held to the model beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.errors import CheckpointError, UnsupportedError
from minicpm4.formats.safetensors_header import described, make_header
from minicpm4.model.source import open_model
from minicpm4.model.stored_prefix import FILE, common_length, stored_nbytes
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.stored_prefix import store_prefix


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def rewrite(folder: Path, **changes: Any) -> None:
    """The file with other arrays; None: without one."""
    stored = store_prefix(folder, [5, 9])
    arrays: dict[str, Any] = {"ids": np.array([5, 9], np.int32), "angles": None}
    arrays |= {"keys": stored.keys, "values": stored.values}
    raw = (folder / FILE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    begin, stop = json.loads(raw[8 : 8 + size])["angles"]["data_offsets"]
    arrays["angles"] = np.frombuffer(raw[8 + size + begin : 8 + size + stop], np.float32)
    found = {name: one for name, one in (arrays | changes).items() if one is not None}
    header = make_header({}, {name: described(one) for name, one in found.items()})
    (folder / FILE).write_bytes(header + b"".join(one.tobytes() for one in found.values()))


def test_it_is_read_as_it_was_written(model: Path) -> None:
    stored = store_prefix(model, [5, 9, 40])
    found = open_model(model)
    assert found.stored is not None and stored.same(found.stored) and found.stored.ids == (5, 9, 40)
    assert stored.nbytes == stored_nbytes(found.config, 3)
    assert not stored.same(None) and not stored.same(store_prefix(model, [5, 9, 41]))
    (model / FILE).unlink()
    assert open_model(model).stored is None
    rewrite(model)
    assert open_model(model).stored is not None


WIDE = np.zeros((2, 2, 2, 17), np.float32)
BAD = [
    ({"ids": np.array([5, 320], np.int32)}, "a token that the model has not"),
    ({"ids": np.array([5, -1], np.int32)}, "a token that the model has not"),
    ({"ids": np.array([[5, 9]], np.int32)}, "it may be of 1 to 64"),
    ({"ids": np.zeros(65, np.int32)}, "it may be of 1 to 64"),
    ({"ids": np.zeros(0, np.int32)}, "it may be of 1 to 64"),
    ({"ids": np.array([5, 9], np.int64)}, "ids is I64"),
    ({"ids": np.array([5, 9, 9], np.int32)}, "the model asks for"),
    ({"keys": WIDE}, "keys is F32"),
    ({"values": WIDE[..., :16].astype(np.float16)}, "values is F16"),
    ({"values": np.full((2, 2, 2, 16), np.inf, np.float32)}, "not finite"),
    ({"keys": np.full((2, 2, 2, 16), np.nan, np.float32)}, "not finite"),
    ({"angles": np.ones(9, np.float32)}, "other rotary positions"),
    ({"angles": np.full(9, np.nan, np.float32)}, "other rotary positions"),
    ({"angles": None}, "it is no stored prefix"),
    ({"more": np.zeros(1, np.float32)}, "it is no stored prefix"),
]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_what_does_not_fit_the_model_is_refused(model: Path, changes: dict[str, Any], said: str) -> None:
    rewrite(model, **changes)
    with pytest.raises(CheckpointError, match=said):
        open_model(model)


def test_config_and_file_belong_together(model: Path) -> None:
    store_prefix(model, [5, 9])
    config = json.loads((model / "config.json").read_text())
    for changes, error in (
        ({"rope_theta": 20000.0}, CheckpointError),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedError),
    ):
        (model / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(error, match="rotary positions"):
            open_model(model)
    (model / "config.json").write_text(json.dumps(config))
    (model / FILE).write_bytes((model / FILE).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=FILE):
        open_model(model)


def test_common_length() -> None:
    assert [common_length([1, 2, 3], one) for one in ([1, 2, 3, 4], [1, 2], [2], [1, 3], [])] == [
        3,
        2,
        0,
        1,
        0,
    ]
