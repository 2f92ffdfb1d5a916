"""A point runs the tokens it says at the depth it says, over filled pages; figures are medians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.runner import StepResult
from minicpm4.engine.steps import Span
from minicpm4.errors import ConfigError, MemoryPlanError
from minicpm4.evals import report
from minicpm4.evals.cost import decode_bytes, prefill_flops
from minicpm4.evals.limits import DeviceLimits, measure_limits
from minicpm4.evals.speed import Measurement, Point, measure
from minicpm4.formats.bf16 import bf16_to_f32
from tests.evals.conftest import SPARSE, MakeModel

PREFILL = Point(kind="prefill", attention="dense", depth=40, tokens=70)
DECODE = Point(kind="decode", attention="sparse", depth=100, tokens=3)


class Recorder:
    """A runner that notes what it is asked to run."""

    def __init__(self) -> None:
        self.steps: list[list[Span]] = []

    def execute(self, plan: Any) -> StepResult:
        self.steps.append(plan.spans)
        return StepResult(np.empty(0), lambda rows: rows, {})


@pytest.mark.parametrize(
    ("point", "spans"),
    [
        (PREFILL, [(40, 32, "none"), (72, 32, "none"), (104, 6, "last")]),
        (DECODE, [(100, 1, "last"), (101, 1, "last"), (102, 1, "last")]),
    ],
)
def test_a_point_runs_its_tokens(make_model: MakeModel, point: Point, spans: list[Any]) -> None:
    model, recorder = make_model(), Recorder()
    model._runners[point.attention] = recorder  # type: ignore[assignment]
    model.seconds(point)
    assert [(span.start, span.count, span.logits) for step in recorder.steps for span in step] == spans


def test_sequences_are_decoded_together(make_model: MakeModel) -> None:
    model, recorder = make_model(batch=3), Recorder()
    model._runners["dense"] = recorder  # type: ignore[assignment]
    model.seconds(replace(DECODE, attention="dense", batch=3))
    assert [[(span.start, span.count) for span in step] for step in recorder.steps] == [
        [(start, 1)] * 3 for start in (100, 101, 102)
    ]
    first = recorder.steps[0]
    pages = [page for span in first for page in span.sequence.pages]
    assert len(set(pages)) == len(pages)
    layer = model._executor.pool.layer(0)
    for span in first:  # each has keys of its own in every page below the depth
        assert all(layer.keys[page].any() for page in span.sequence.pages[: 100 // 16])
    one = Measurement(point=replace(DECODE, batch=3), seconds=(2.0,))
    assert one.rate == 3 * 3 / 2.0
    weights = model.weights.nbytes
    assert decode_bytes(model.weights, 0, "bf16", None, 4) == weights / 4


def test_pages_are_filled_up_to_the_depth(make_model: MakeModel) -> None:
    model = make_model(kv="bf16")
    model.fill(40)
    model.fill(100)
    layer = model._executor.pool.layer(1)
    keys = bf16_to_f32(layer.keys).transpose(0, 3, 1, 2).reshape(-1, 2, 16)
    assert keys[:100].std() == pytest.approx(1, abs=0.1)
    assert not keys[100:].any() and np.abs(keys[:100]).min(axis=(1, 2)).all()
    assert layer.compressed is not None and layer.compressed_scales is not None
    # Compressed key 9 covers tokens 36 to 43, which were filled at two times; it ends in page 2.
    slot = 43 // 16, slice(None), 43 % 16 // 4
    found = layer.compressed[slot] * layer.compressed_scales[slot][:, None]
    np.testing.assert_allclose(found, keys[36:44].mean(axis=0), atol=1e-2)


def test_points_take_turns(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    seen: list[Point] = []
    monkeypatch.setattr(type(model), "warm_up", lambda self: None)
    monkeypatch.setattr(type(model), "seconds", lambda self, point: seen.append(point) or float(len(seen)))
    calls: list[tuple[int, int]] = []
    first, second = measure(model, [PREFILL, DECODE], 3, lambda done, total: calls.append((done, total)))
    assert seen == [PREFILL, DECODE] * 3
    assert (first.seconds, second.seconds) == ((1.0, 3.0, 5.0), (2.0, 4.0, 6.0))
    assert calls[-1] == (6, 6)


def test_a_rate_is_the_median(make_model: MakeModel) -> None:
    one = Measurement(point=PREFILL, seconds=(2.0, 9.0, 1.0))
    assert (one.rate, one.spread) == (35.0, 4.0)


@pytest.mark.parametrize("kv", ["bf16", "float32"])
def test_everything_is_measured(make_model: MakeModel, kv: str) -> None:
    model = make_model(kv=kv)
    points = [PREFILL, DECODE, replace(PREFILL, attention="sparse", depth=0)]
    measured = measure(model, points, 2)
    assert all(len(one.seconds) == 2 and min(one.seconds) > 0 for one in measured)
    found = report.as_json("tiny", model, measured, DeviceLimits(bandwidth=1e9, float32=1e9))
    assert [p["depth"] for p in found["points"]] == [40, 100, 0]
    assert found["points"][1]["limit_share"] == pytest.approx(
        found["points"][1]["tokens_per_s"] * found["points"][1]["bytes_per_token"] / 1e9
    )


def test_bytes_of_a_decoded_token(make_model: MakeModel) -> None:
    model = make_model()
    weights, sparse = model.weights, SparseConfig(**SPARSE, dense_len=-1)  # type: ignore[arg-type]
    token = 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, head size, bytes of bf16
    assert decode_bytes(weights, 1000, "bf16", None) == weights.nbytes + 1000 * token
    # Four blocks of 16 tokens, and 250 compressed keys of each layer and head in 16 bits, with a scale.
    expected = weights.nbytes + 64 * token + 250 * 2 * 2 * (16 * 2 + 4)
    assert decode_bytes(weights, 1000, "bf16", sparse) == expected


def test_operations_of_a_read_token(make_model: MakeModel) -> None:
    weights = make_model().weights
    matrices = weights.num_parameters - 96 * 64
    assert prefill_flops(weights, 0, 1, None) == 2 * matrices + 4 * 64 * 2
    whole = prefill_flops(weights, 0, 50, None) + prefill_flops(weights, 50, 50, None)
    assert prefill_flops(weights, 0, 100, None) == whole
    sparse = SparseConfig(**SPARSE, dense_len=-1)  # type: ignore[arg-type]
    assert prefill_flops(weights, 400, 1, sparse) == 2 * matrices + 4 * 64 * 2 * (64 + 100 / 2)


def test_attention_auto_follows_the_checkpoint(make_model: MakeModel) -> None:
    model = make_model(attentions=("auto",), sparse=None)
    assert model.sparse == {"auto": None}


def test_too_little_memory_is_refused_first(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minicpm4.kernels.contract.available_memory", lambda: 100_000)
    with pytest.raises(MemoryPlanError, match="are available"):
        make_model(room=4096)


def test_wrong_settings_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="weights"):
        make_model(weights="int3")


def test_limits_are_measured(make_model: MakeModel) -> None:
    limits = measure_limits(make_model().ops, 2, megabytes=2, size=64)
    assert limits.bandwidth > 1e8 and limits.float32 > 1e7
