"""The memory that a conversion is said to take, beside what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.cli import run
from minicpm4.evals import conversion
from tests.fixtures.random_checkpoint import make_checkpoint

CHILD = """
import json, sys, threading, time
from pathlib import Path
from minicpm4.kernels.registry import host_table
from minicpm4.model.source import open_model
from minicpm4.quantize.memory import planned_memory
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.pipeline import quantize

peak, done = 0, False

def told():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():  # pages of the mapped source are the system's to take back: anonymous memory alone
    global peak
    while not done:
        peak = max(peak, told())
        time.sleep(0.002)

source, folder, method, rotate = sys.argv[1:]
options = QuantizeOptions(method=method, rotate=rotate == "True", seed=1)
found = open_model(source)
texts = [[(7 * i * j) % 300 for i in range(256)] for j in range(1, 9)]
import numpy as np
np.linalg.cholesky(np.eye(600)) @ np.ones((600, 600))  # what libraries keep
before = told()
watcher = threading.Thread(target=watch)
watcher.start()
quantize(found.checkpoint, found.config, options, texts, host_table(), Path(folder), {})
done = True
watcher.join()
planned = planned_memory(found.config, options, 8 * 256)
print(json.dumps({"planned": planned, "peak": peak - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("method", "rotate"), [("gptq", False), ("s-gptq", False), ("awq", True), ("rtn", False)]
)
@pytest.mark.parametrize("shape", [(768, 4096, 1024), (512, 512, 60000)])
def test_the_plan_is_near_the_peak(
    tmp_path: Path, method: str, rotate: bool, shape: tuple[int, int, int]
) -> None:
    hidden, wide, vocab = shape
    source = make_checkpoint(
        tmp_path / "m", hidden_size=hidden, intermediate_size=wide, vocab_size=vocab, num_attention_heads=8,
        num_key_value_heads=2, head_dim=hidden // 8, num_hidden_layers=2,
    )  # fmt: skip
    command = [sys.executable, "-c", CHILD, str(source), str(tmp_path / "part"), method, str(rotate)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert 0.6 * found["planned"] - (60 << 20) < found["peak"] < 1.1 * found["planned"] + (40 << 20), found


def test_what_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make_checkpoint(tmp_path / "m"), tmp_path / "small"
    text = tmp_path / "text.txt"
    text.write_text("Some text to look at. " * 400)
    args = [
        "convert",
        str(source),
        str(target),
        "--group",
        "32",
        "--calibration",
        str(text),
        "--length",
        "64",
    ]
    monkeypatch.setattr(conversion, "available_memory", lambda: 1 << 18)
    assert run(args) == 2
    assert "the conversion takes" in capsys.readouterr().err and not target.exists()
    monkeypatch.setattr(conversion, "available_memory", lambda: 1 << 30)
    assert run(args) == 0
