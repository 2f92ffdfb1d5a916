"""A checkpoint of MiniCPM4-0.5B's shape reads long texts within its memory plan."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import require_smollm
from tests.fixtures.random_checkpoint import make_minicpm4_half_billion

HERE = Path(__file__).parent
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    # Calibration and weights kept on disk by earlier starts would make this another measurement.
    env = {**os.environ, "MINICPM4_KEPT_WEIGHTS": "off", "MINICPM4_CALIBRATION": "off"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=True, env=env)
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    return report


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    return make_minicpm4_half_billion(folder, sparse_config={}, max_position_embeddings=131072)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_int4_reads_8192_tokens_sparse_within_the_plan(half_billion):
    report = run("long_read.py", half_billion, 8192, 64, "int4", 24, 1024)
    assert report["attention"] == "sparse"
    assert report["new_tokens"] == 64
    assert report["blocks_read_share"] < 0.53  # 24 and 16 of up to 129 blocks
    assert report["peak"] <= 1.02 * report["planned"]


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("context", "attention", "kv"), [(131072, "sparse", "bf16"), (32768, "dense", "int8")]
)
def test_the_plan_is_what_half_a_billion_weights_take(half_billion, context, attention, kv):
    report = run("deep_step.py", half_billion, context, attention, "int4", kv)
    assert report["peak"] == pytest.approx(report["planned"], rel=0.02), report["plan"]


@ON_LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_plan_is_what_smollm2_takes():
    require_smollm()
    report = run("deep_step.py", "smollm2-135m-instruct", 32768, "dense", "auto", "bf16")
    assert report["peak"] == pytest.approx(report["planned"], rel=0.02), report["plan"]
