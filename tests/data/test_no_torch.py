"""Packing needs no torch: a recipe's data can be made where training is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.data.sets import TEXTS, tokenizer_folder

WITHOUT_TORCH = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from minicpm4.cli import run
from minicpm4.data.mixture import MixturePart, Stream
from minicpm4.data.shards import ShardSet
from minicpm4.train.recipe import read_recipe
folder, tokenizer = Path(sys.argv[1]), sys.argv[2]
more = ["--tokenizer", tokenizer, "--output", str(folder / "set")]
packed = run(["data", "pack", str(folder / "text"), *more])
parts = [MixturePart(name="set", data=ShardSet(folder / "set"), share=1.0)]
print(packed, len(Stream(parts, seed=0, tokens=64, context=32).batch(0).ids))
"""


def test_text_is_packed_and_batched_without_torch(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    given = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), str(tokenizer_folder())]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0 64"], done.stderr
