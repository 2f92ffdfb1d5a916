"""Small files that unpack to very much."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicpm4.data import parquet_pages, rows
from minicpm4.data.sources import conversations, texts
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


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_of_parquet_that_unpacks_to_very_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool, version: str
) -> None:
    """48 kB took 6 GB of memory, and 38 s, before the text was refused as too long."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "bomb.parquet"

    def write(*written: str) -> None:
        table = pyarrow.table({"other": ["a" * 5000] * len(written), "text": list(written)})
        how = {"compression": "zstd", "use_dictionary": dictionary, "data_page_version": version}
        parquet.write_table(table, file, row_group_size=1, **how)

    monkeypatch.setattr(parquet_pages, "MAX_PAGE", 4000)
    write("a", "é" * 1500)
    assert list(texts("parquet", [file])) == ["a", "é" * 1500]
    write("a", "b" * 4000)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", None)
    with pytest.raises(
        ConfigError, match=r"bomb.parquet: a page of 'text' is 4,0\d\d bytes, at most 4,000 are"
    ):
        list(texts("parquet", [file]))


def test_long_texts_of_parquet_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file, sizes = tmp_path / "long.parquet", []
    parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 9}), file, row_group_size=1)
    read = parquet.ParquetFile.iter_batches

    def told(self: object, batch_size: int, columns: list[str]) -> object:
        sizes.append(batch_size)
        return read(self, batch_size=batch_size, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", told)
    monkeypatch.setattr(rows, "MAX_PAGE", 3500)
    assert len(list(texts("parquet", [file]))) == 9
    assert sizes == [3]


def write_chats(file: Path, *chats: list[dict[str, str] | None] | None, version: str = "1.0") -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    table = pyarrow.table({"messages": pyarrow.array(chats, kind)})
    parquet.write_table(table, file, compression="zstd", data_page_version=version)


TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize("one", [TURN, None])
def test_a_row_of_very_many_values_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: dict[str, str] | None
) -> None:
    """966 bytes took 2.4 GB of memory for five million messages, and could hold a thousand million."""
    file = tmp_path / "chats.parquet"
    write_chats(file, [TURN] * 3, None, [one] * 400, [TURN] * 20)
    monkeypatch.setattr(rows, "MAX_VALUES", 1 + 3 * 20)
    told: list[str] = []
    found = list(conversations([file], skip=lambda reason, where: told.append(f"{reason} {where}")))
    assert [len(chat.messages) for chat in found] == [3, 20]
    assert any("row 3: 'messages' holds over 61 values" in line for line in told), told


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_lists_of_very_many_values_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "chats.parquet"
    write_chats(file, [TURN] * 40, [], [TURN] * 9, version=version)
    monkeypatch.setattr(parquet_pages, "MAX_NESTED", 100)  # 50 roles, 50 contents: an empty list counts
    assert [len(chat.messages) for chat in conversations([file])] == [40, 0, 9]
    write_chats(file, [TURN] * 41, [], [TURN] * 9, version=version)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", None)
    with pytest.raises(
        ConfigError, match=r"chats.parquet: 'messages.*' has over 100 values in a group of rows"
    ):
        list(conversations([file]))


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells memory by /proc")
def test_a_line_of_very_many_values_takes_little_memory(tmp_path: Path) -> None:
    """122 kB took 3.2 GB of memory, and were a row."""
    file = tmp_path / "values.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a", "x": [' + b"{}," * 8_000_000 + b"0]}\n"))
    read = READ.replace('"parquet"', '"jsonl"').replace("print(", "try: print(")
    read += 'except ConfigError as error: print(error, "|", peak() - before)\n'
    read = f"from minicpm4.errors import ConfigError{read}"
    done = subprocess.run([sys.executable, "-c", read, file], capture_output=True, text=True, check=True)
    told, megabytes = done.stdout.split("|")
    assert "values.jsonl.gz, line 1 is not JSON: it holds over 4,194,304 values" in told
    assert int(megabytes) < 300  # its objects would take 600


@pytest.mark.parametrize(
    "header",
    [
        b"\x19\xf7" + b"\xff" * 8 + b"\x7f",  # a list of very many numbers
        b"\x18" + b"\xff" * 9 + b"\x7f",  # a text of 2**69 characters
        b"\x19\xf1" + b"\xff" * 8 + b"\x7f",  # a list of very many truths
        b"\x1c" * 40,  # structs in structs
        b"\xff" * 40,
    ],
)
def test_a_header_of_a_page_that_never_ends_is_refused(tmp_path: Path, header: bytes) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    written = pyarrow.table({"text": ["word " * 2000] * 3})
    parquet.write_table(written, file, use_dictionary=False, compression="none")
    place = parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    with file.open("r+b") as data:
        data.seek(place)
        data.write(header)
    with pytest.raises(ConfigError, match="a page's header is not understood"):
        list(texts("parquet", [file]))


def test_pyarrow_is_not_asked_where_pages_begin(tmp_path: Path) -> None:
    """It ends the process where a column's statistics of sizes are damaged, which its reading refuses."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a" * 50, "b" * 7000, "c"], "turns": [[1, 2], [], [3]]})
    for options in ({}, {"use_dictionary": False}, {"compression": "none", "data_page_version": "2.0"}):
        parquet.write_table(table, file, row_group_size=1, **options)
        known = parquet.ParquetFile(file).metadata
        only = SimpleNamespace(schema=known.schema, num_columns=known.num_columns)
        assert 7000 < parquet_pages.largest_page(file, only, ["text"]) < 7100
        assert parquet_pages.largest_page(file, only, ["turns"]) < 200


def test_a_footer_of_very_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"]}), file)
    assert list(texts("parquet", [file])) == ["a"]
    monkeypatch.setattr(parquet_pages, "_LONGEST", 100)
    with pytest.raises(ConfigError, match=r"has a footer of \d+ bytes, at most 100 are read"):
        list(texts("parquet", [file]))
