"""The peak that shares are of: measured once, kept, measured again for another device or a bad file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from minicpm4.train import peak  # noqa: E402
from minicpm4.train.metrics import read_metrics  # noqa: E402
from minicpm4.train.peak import peak_of  # noqa: E402
from tests.train.runs import corpus, recipe, runner, stage  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SIZES", {"cpu": 128})
    monkeypatch.setattr(peak, "SECONDS", 0.0)


def test_a_peak_is_kept_for_its_device_and_precision(tmp_path: Path) -> None:
    first = peak_of(tmp_path / "run", CPU, "float32")
    assert first.flops_per_s > 0 and "measured" in str(first) and "float32" in str(first)
    assert peak_of(tmp_path / "run", CPU, "float32") == first
    assert peak_of(tmp_path / "run", CPU, "bf16").precision == "bf16"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"flops_per_s": -1.0}', '{"flops_per_s": "much"}'])
def test_a_bad_file_is_measured_anew(tmp_path: Path, text: str) -> None:
    about = json.loads(text) if text.startswith('{"') else None
    found = peak_of(tmp_path, CPU, "float32")
    table = json.loads((tmp_path / peak.PEAK).read_text()) | (about or {})
    (tmp_path / peak.PEAK).write_text(json.dumps(table) if about else text)
    assert 0 < peak_of(tmp_path, CPU, "float32").flops_per_s < 1e3 * found.flops_per_s


def test_measuring_changes_no_random_numbers(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    peak_of(tmp_path, CPU, "float32")
    assert torch.equal(before, torch.get_rng_state())


def test_the_log_has_the_share_of_the_peak(tmp_path: Path) -> None:
    run = runner(recipe(stage(steps=1)), tmp_path / "run", corpus(tmp_path / "data"))
    run._peak = 1e9
    run.run()
    (line,) = read_metrics(tmp_path / "run")
    assert line["mfu"] == pytest.approx(line["flops_per_s"] / 1e9, abs=1e-4)
