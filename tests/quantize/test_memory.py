"""The memory that a conversion is said to take, beside what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from itertools import product
from pathlib import Path

import pytest

from minicpm4.cli import run
from minicpm4.config import ModelConfig
from minicpm4.evals import conversion
from minicpm4.formats.ggml_fit import type_id
from minicpm4.model.source import open_model
from minicpm4.quantize.memory import least_disk, memory_bound, planned_memory
from minicpm4.quantize.options import METHODS, QuantizeOptions
from tests.fixtures.random_checkpoint import make_checkpoint

CHILD = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from minicpm4.evals.conversion import Calibration, convert
from minicpm4.model.source import open_model
from minicpm4.progress import silent
from minicpm4.quantize.memory import planned_memory
from minicpm4.quantize.options import QuantizeOptions

peak, done = 0, False

def told():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():  # pages of mapped files are the system's to take back: anonymous memory alone
    global peak
    while not done:
        peak = max(peak, told())
        time.sleep(0.002)

source, target, text, method, layout, rotate, bits = sys.argv[1:]
said = {"rotate": rotate == "True", "bits": float(bits) or None}
options = None if method == "none" else QuantizeOptions(method=method, seed=1, **said)
texts = Calibration(files=(Path(text),), samples=8, length=256)
tiny = Path(target).parent / "tiny"
small = QuantizeOptions(method="rtn", group=32)
convert(str(tiny), Path(target + "-first"), small, "hf", texts, silent)  # what libraries keep
np.linalg.cholesky(np.eye(600)) @ np.ones((600, 600))
before = told()
watcher = threading.Thread(target=watch)
watcher.start()
convert(source, Path(target), options, layout, texts, silent)
done = True
watcher.join()
planned = planned_memory(open_model(source).config, options, 8 * 256)
print(json.dumps({"planned": planned, "peak": peak - before}))
"""


WIDE = {"hidden_size": 768, "intermediate_size": 4096, "vocab_size": 1024, "head_dim": 96}
MANY = {"hidden_size": 512, "intermediate_size": 512, "vocab_size": 60000, "head_dim": 64}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("shape", "method", "layout", "rotate", "bits"),
    [
        (WIDE, "gptq", "compressed-tensors", False, 0),
        (WIDE, "s-gptq", "gptq", True, 0),
        (WIDE, "awq", "awq", False, 0),
        (WIDE, "rtn", "hf", False, 0),
        (WIDE | {"tie": True}, "none", "llama", False, 0),
        (MANY, "gptq", "compressed-tensors", False, 0),
        (MANY, "awq", "compressed-tensors", True, 0),
        (MANY | {"tie": True}, "rtn", "compressed-tensors", False, 0),
        (MANY | {"tie": True}, "rtn", "llama", False, 0),
        (MANY, "none", "llama", False, 0),
        (MANY, "none", "gguf", False, 0),
        (MANY, "rtn", "mlx", False, 0),
        (MANY, "awq", "gguf", False, 5),
        (MANY | {"tie": True}, "awq", "hf", True, 5),
        (WIDE, "awq", "hf", True, 5),
        (MANY | {"tie": True}, "rtn", "llama", True, 0),
        (MANY | {"dtype": "bfloat16"}, "none", "llama", False, 0),
    ],
)
def test_the_plan_is_near_the_peak(
    tmp_path: Path, shape: dict[str, int], method: str, layout: str, rotate: bool, bits: float
) -> None:
    source = make_checkpoint(tmp_path / "m", num_attention_heads=8, num_key_value_heads=2, **shape)
    make_checkpoint(tmp_path / "tiny")
    text, target = tmp_path / "text.txt", tmp_path / ("made.gguf" if layout == "gguf" else "made")
    text.write_text("".join(f"Line {i} of a text to look at.\n" for i in range(400)))
    command = [sys.executable, "-c", CHILD, str(source), str(target), str(text), method, layout]
    command += [str(rotate), str(bits)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert 0.4 * found["planned"] < found["peak"] < 1.1 * found["planned"] + (40 << 20), found


LARGE = {
    "SmolLM2-135M": (49152, 576, 1536, 30, 9, 3, True),
    "MiniCPM4-0.5B": (73448, 1024, 4096, 24, 16, 2, True),
    "Qwen2.5-1.5B": (151936, 1536, 8960, 28, 12, 2, True),
    "MiniCPM4-8B": (73448, 4096, 16384, 32, 32, 2, False),
}


TOKEN_COUNTS = (0, 64, 512, 16 * 256, 32 * 512, 128 * 2048)


def large(name: str) -> ModelConfig:
    vocab, hidden, inner, layers, heads, kv, tied = LARGE[name]
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=hidden // heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("model", LARGE)
@pytest.mark.parametrize("method", [None, *METHODS])
def test_conversions_of_all_sizes_are_planned_within_the_bound(model: str, method: str | None) -> None:
    """With a budget of bits, rotated, by few tokens or many; the plan is the same for every layout."""
    config = large(model)
    every: list[QuantizeOptions | None] = [None]
    if method is not None:
        kinds = ("int4", "int8", "bf16") if method == "rtn" else ("int4", "int8")
        budgets = (None,) if method == "rtn" else (None, 5.5)
        orders = (False, True) if "gptq" in method else (False,)
        every = [
            QuantizeOptions(weights=kind, method=method, group=32, rotate=rotate, act_order=order, bits=bits)
            for kind, rotate, order, bits in product(kinds, (False, True), orders, budgets)
            if bits is None or kind == "int4"
        ]
    for options, tokens in product(every, TOKEN_COUNTS):
        assert planned_memory(config, options, tokens) <= memory_bound(config, tokens), (options, tokens)


def test_the_disk_that_a_type_of_gguf_takes_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was as much as the rounded matrices take in the work folder, whatever type was asked for."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 8}
    source, out = make_checkpoint(tmp_path / "m", **shape), tmp_path / "out.gguf"
    options = QuantizeOptions(weights="ternary", method="rtn", group=256)
    config = open_model(str(source)).config
    specs = options.specs(config)
    number = type_id("tq1_0")
    small, usual = least_disk(config, specs, "gguf", lambda name: number), least_disk(config, specs, "gguf")
    assert small < usual
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda place: disk((small + usual) // 2))
    args = ["convert", str(source), str(out), "--weights", "ternary", "--group", "256", "--method", "rtn"]
    assert run(args) == 2 and "the conversion takes at least" in capsys.readouterr().err
    assert run([*args, "--gguf-type", "tq1_0"]) == 0
    assert out.stat().st_size > 0


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
    said = capsys.readouterr().err
    assert "the conversion takes" in said and "--samples" in said and not target.exists()
    assert run(["convert", str(source), str(target), "--to", "llama"]) == 2  # nothing to lower there
    assert "--samples" not in capsys.readouterr().err and list(tmp_path.glob("small*")) == []
    monkeypatch.setattr(conversion, "available_memory", lambda: 1 << 30)
    assert run(args) == 0
