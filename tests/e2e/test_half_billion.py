"""A checkpoint of MiniCPM4-0.5B's shape reads a long text within its memory plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.random_checkpoint import make_minicpm4_half_billion

SCRIPT = Path(__file__).with_name("long_read.py")


def read(folder, tokens, new):
    command = [sys.executable, str(SCRIPT), str(folder), str(tokens), str(new), "int4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    return report


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_int4_reads_32768_tokens_sparse_within_the_plan(tmp_path):
    folder = make_minicpm4_half_billion(tmp_path / "half", sparse_config={}, max_position_embeddings=65536)
    report = read(folder, 32768, 64)
    assert report["attention"] == "sparse"
    assert report["new_tokens"] == 64
    assert report["blocks_read_share"] < 0.4  # 96 of up to 513 blocks
    # Seen: 1.01 to 1.03.
    assert report["peak"] <= 1.1 * report["planned"]
