"""Small files that unpack to very much."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.data import rows
from minicpm4.data.sources import texts
from minicpm4.errors import ConfigError

READ = r"""
import re, sys
from pathlib import Path
from minicpm4.data.sources import texts
import pyarrow.parquet
# Not getrusage, which counts what the parent had.
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10
before = peak()
print(sum(map(len, texts("parquet", [Path(sys.argv[1])]))), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells memory by /proc")
def test_a_dictionary_of_parquet_takes_little_memory(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "bomb.parquet"
    table = pyarrow.table({"text": ["a" * (1 << 23)] * 100})
    parquet.write_table(table, file, compression="zstd", use_dictionary=True)
    assert file.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", READ, file], capture_output=True, text=True, check=True)
    characters, megabytes = map(int, done.stdout.split())
    assert characters == 100 << 23
    assert megabytes < 400  # read at once it is 800 and more


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n"])
def test_blank_lines_without_end_are_refused(
    tmp_path: Path, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_BLANK", 1000)
    file = tmp_path / "blank.jsonl.gz"
    row = b'{"text": "a"}\n'
    file.write_bytes(gzip.compress((end * 1000 + row) * 3))
    assert list(texts("jsonl", [file])) == ["a"] * 3
    file.write_bytes(gzip.compress(row + end * 1001 + row))
    with pytest.raises(ConfigError, match=r"line 1002 follows 1,000 blank lines"):
        list(texts("jsonl", [file]))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE", 1000)
    file = tmp_path / "line.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n' + b" " * 100_000))
    with pytest.raises(ConfigError, match=r"line 2 has over 1,000 bytes"):
        list(texts("jsonl", [file]))
