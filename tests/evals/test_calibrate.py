"""Calibration believes clear and repeated wins, and no single fast moment; it measures every shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.calibration import selection
from minicpm4.evals import calibrate as module
from minicpm4.evals.calibrate import calibrate, crossover, faster
from minicpm4.evals.random_model import RandomCheckpoint
from minicpm4.evals.speed import BenchModel, Point
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels import registry
from minicpm4.kernels.contract import OpTable
from tests.evals.conftest import SPARSE, TINY


@pytest.mark.parametrize(
    ("other", "winner"),
    [
        ([0.9] * 5, 2),
        ([0.97] * 5, None),  # not by enough
        ([0.1, 0.1, 0.1, 1.5, 1.5], None),  # not often enough
        ([0.8, 0.8, 0.8, 0.8, 3.0], 2),
        ([1.2] * 5, None),
    ],
)
def test_a_default_is_replaced_by_a_clear_winner(other: list[float], winner: int | None) -> None:
    assert faster({1: [1.0] * 5, 2: other}, 1) == winner
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]  # the machine becomes slower: turns are compared, not totals
    assert faster({1: drift, 2: [a * b for a, b in zip(drift, other, strict=True)]}, 1) == winner


def test_the_best_of_several_wins() -> None:
    assert faster({1: [1.0] * 5, 2: [0.9] * 5, 3: [0.8] * 5}, 1) == 3


@pytest.mark.parametrize(
    ("medians", "depth"),
    [
        ({100: 1.2, 200: 0.9, 300: 0.8}, 200),
        ({100: 0.9, 200: 1.1, 300: 0.8}, 300),  # from where it stays faster
        ({100: 0.9, 200: 0.8, 300: 0.7}, 100),
        ({100: 1.3, 200: 1.2, 300: 1.1}, 300),  # further down nothing is known
        ({100: 1.0, 200: 0.9, 300: 0.8}, 200),  # as fast is no gain
    ],
)
def test_crossover(medians: dict[int, float], depth: int) -> None:
    assert crossover({d: [m - 0.01, m, m, m, m + 0.01] for d, m in medians.items()}) == depth
    assert crossover({d: [m - 0.4, m - 0.2, m, m + 0.2, m + 0.4] for d, m in medians.items()}) is None


def test_a_model_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, num_hidden_layers=3, vocab_size=300)
    checkpoint = RandomCheckpoint(config, lambda name, shape: QuantSpec(kind="int4", group_size=32))
    monkeypatch.setattr(module, "CHUNKS", (64, 512))
    sparse, steps = SparseConfig(**SPARSE, dense_len=100), []  # type: ignore[arg-type]
    found = calibrate("tiny", checkpoint, config, sparse=sparse, progress=lambda *at: steps.append(at))
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert sorted(found.rows) == [1, 2, 4, 8, 16]
    assert found.crossovers[0].sparse == selection(sparse)
    assert found.chunk in (None, 64)
    assert found.others is None or 0 <= found.others <= 1


@pytest.mark.parametrize(
    ("prefill", "decode", "winner"),
    [
        (0.5, 1.1, 2),
        (1.1, 0.5, 2),
        (0.5, 2.0, None),
        (0.9, 1.2, None),
        (0.9, 0.9, 2),
        (2.5, 0.3, 2),
        (0.94, 1.0, None),
    ],
)
def test_threads_are_chosen_by_prompts_and_answers_alike(
    monkeypatch: pytest.MonkeyPatch, prefill: float, decode: float, winner: int | None
) -> None:
    class Timed:
        def __init__(self, count: int) -> None:
            times = {1: (1.0, 1.0), 2: (prefill, decode)}[count]
            self.times = dict(zip(("prefill", "decode"), times, strict=True))

        def warm_up(self) -> None:
            pass

        def seconds(self, point: Point) -> float:
            return self.times[point.kind]

    ticks: list[int] = []
    monkeypatch.setattr(module, "default_threads", lambda: 1)
    monkeypatch.setattr(module, "_with_threads", lambda model, count: Timed(count))
    assert module._threads(None, [1, 2], lambda: ticks.append(1)) == winner  # type: ignore[arg-type]
    assert module._threads(None, [1], lambda: ticks.append(1)) is None  # type: ignore[arg-type]
    assert len(ticks) == (2 + 1) * module.TURNS


def test_the_cpu_is_measured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[OpTable] = []

    def asked(model: BenchModel, *rest: object) -> None:
        tables.append(model.ops)
        raise InterruptedError

    monkeypatch.setattr(registry, "_gpu_present", lambda: True)
    monkeypatch.setattr(module, "_threads", asked)
    checkpoint = RandomCheckpoint(TINY, lambda name, shape: QuantSpec(kind="int4", group_size=32))
    with pytest.raises(InterruptedError):
        calibrate("tiny", checkpoint, TINY)
    assert tables[0].on_host


def test_layers_and_tokens_are_left_out() -> None:
    checkpoint = RandomCheckpoint(TINY, lambda name, shape: QuantSpec(kind="int8", group_size=32))
    small = replace(TINY, num_hidden_layers=1, vocab_size=40)
    part = module._Part(checkpoint, small)
    assert {module._layer(name) for name in part.tensors} == {-1, 0}
    head, whole = (source.load("model.embed_tokens.weight") for source in (part, checkpoint))
    assert head.shape == (40, 64)
    assert (head.codes == whole.codes[:40]).all()
    assert head.scales is not None
    assert whole.scales is not None
    assert (head.scales == whole.scales[:40]).all()
