"""Documents from files: what is read, in which order, and what is refused, with its place."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.data import sources
from minicpm4.data.packing import Counting
from minicpm4.data.sources import (
    NULL,
    UNDECODED,
    WRONG,
    conversations,
    distinct,
    files_of,
    filter_hash,
    hash_of,
    texts,
)
from minicpm4.errors import ConfigError, UnsupportedError


def lines(file: Path, *rows: Any) -> Path:
    """JSON lines; gzipped where the name says so."""
    data = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def parquet(file: Path, **columns: Any) -> Path:
    """A file of ``columns``: lists, or pyarrow's arrays."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(dict(columns)), file)
    return file


def test_folders_are_searched_by_suffix_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "c.py", "d/e.rst", "d/f.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [f.name for f in files_of("text", [str(tmp_path)])] == ["a.txt", "b.md", "e.rst"]
    named = [str(tmp_path / name) for name in ("c.py", "a.txt")]
    assert [str(file) for file in files_of("text", named)] == named
    with pytest.raises(ConfigError, match=r"no files of kind 'parquet'. it looks for .parquet"):
        files_of("parquet", [str(tmp_path)])
    with pytest.raises(ConfigError, match="did you mean 'html'"):
        files_of("htm", [str(tmp_path)])
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        files_of("text", [str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"\xef\xbb\xbfbom", "bom"),
        ("sixteen é".encode("utf-16"), "sixteen é"),
        (b"a\r\nb", "a\nb"),
        (b"a\rb", "a\nb"),
    ],
)
def test_text_files(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "empty.txt").write_bytes(b" \n")
    assert list(texts("text", files_of("text", [str(tmp_path)]))) == [text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    file = lines(tmp_path / name, "\ufeff" + '{"text": "one"}\n', "\n", {"text": ""}, {"text": "w\U0001f600"})
    assert list(texts("jsonl", [file])) == ["one", "w\U0001f600"]
    assert list(texts("jsonl", [lines(tmp_path / ("empty" + name))])) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "cut', r"a.jsonl, line 2 is not JSON"),
        ("[" * 100_000, r"a.jsonl, line 2 is nested too deep"),
        ('{"text": ' + "9" * 9999 + "}", r"a.jsonl, line 2 is not JSON"),
        ({"body": "x", "title": "y"}, r"line 2 has no 'text', but 'body', 'title'. name the column"),
        ([1], "line 2 has no 'text', but no columns"),
        ({"text": ["x"]}, "line 2: 'text' is a list, not a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(texts("jsonl", [lines(tmp_path / "a.jsonl", {"text": "good"}, row)]))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "' + b"text" * 5000 + b'"}\n')
    no_block = whole[:10] + b"\xff" + whole[11:]
    for data in (b"no gzip", whole[:-20], no_block):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot read .*a.jsonl.gz"):
            list(texts("jsonl", [tmp_path / "a.jsonl.gz"]))


def test_conversations_come_with_their_place(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "hi"}]
    file = lines(tmp_path / "a.jsonl", {"chat": turn}, {"chat": 7})
    found = list(conversations([file], "chat"))
    assert [one[:2] for one in found] == [(f"{file}, line 1", turn), (f"{file}, line 2", 7)]
    assert [one[2:] for one in found] == [(None, {})] * 2
    with pytest.raises(ConfigError, match="line 1 has no 'messages', but 'chat'"):
        list(conversations([file]))


def test_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["one", None, "", "two"], n=[1, 2, 3, 4])
    assert list(texts("parquet", [file])) == ["one", "two"]
    with pytest.raises(ConfigError, match="no column 'body', but text, n"):
        list(texts("parquet", [file], "body"))
    with pytest.raises(ConfigError, match="row 1: 'n' is a int, not a text"):
        list(texts("parquet", [file], "n"))
    data = file.read_bytes()
    for damaged in (b"", b"PAR1", data[:-9], data[: len(data) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read as parquet"):
            list(texts("parquet", [file]))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError, match=r"pip install -e '\.\[data\]'"):
        list(texts("parquet", [tmp_path / "a.parquet"]))


def test_pages_of_indexes_and_menus_are_left_out(tmp_path: Path) -> None:
    page = "<p>" + "Something to read. " * 20
    for name in ("a.html", "genindex.html", "search.html"):
        (tmp_path / name).write_text(page)
    (tmp_path / "short.html").write_text("<p>moved")
    assert len(list(texts("html", files_of("html", [str(tmp_path)])))) == 1
    assert next(texts("text", [tmp_path / "a.html"])).startswith("<p>")


DOCUMENTS = st.lists(st.text(min_size=1, max_size=4), max_size=30)


@given(DOCUMENTS, st.randoms())
def test_distinct_keeps_one_of_each_whatever_the_order(documents: list[str], rng: Any) -> None:
    def told_apart(some: list[str]) -> set[str]:
        return {" ".join(text.split()) for text in some}

    once = list(distinct(documents))
    assert len(once) == len(told_apart(once)) == len(told_apart(documents))
    rng.shuffle(documents)
    assert told_apart(list(distinct(documents))) == told_apart(once)


def test_the_hash_is_of_contents_and_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert len({hash_of([one, two]), hash_of([two, one]), hash_of([one])}) == 3
    assert hash_of([one]) == hash_of([one])


def test_the_filter_hash_is_of_all_that_decides_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {filter_hash("html"), filter_hash("text"), filter_hash("package")}
    found |= {filter_hash("html", distinct=True), filter_hash("html", share=0.1)}
    assert filter_hash("html", share=0.1, held_out=True) not in found
    assert len(found) == 5 and filter_hash("html") in found
    for kind in ("questions", "copies"):  # how they are made counts, beside what all kinds have
        assert filter_hash(kind) != filter_hash("text")
    monkeypatch.setattr(sources, "LEAST_PAGE", 201)
    assert filter_hash("html") not in found and filter_hash("text") in found


@pytest.mark.skipif(
    not Path("/proc/self/mem").is_file(), reason="no file here that is there and cannot be read"
)
def test_a_file_that_cannot_be_read_is_named() -> None:
    file = Path("/proc/self/mem")
    for read in (
        lambda: hash_of([file]),
        lambda: list(texts("text", [file])),
        lambda: list(texts("jsonl", [file])),
        lambda: list(conversations([file])),
    ):
        with pytest.raises(ConfigError, match="cannot read /proc/self/mem: Input/output error"):
            read()


ROWS = [{"text": "one"}, {"body": "x"}, {"text": None}, {"text": 7}, {"text": "two"}]


def test_dirty_lines_are_skipped_counted_and_shown(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", "{\n", *ROWS, '{"text": "cut')
    counting = Counting()
    assert list(texts("jsonl", [file], skip=counting.skip)) == ["one", "two"]
    assert counting.left_out == {WRONG: 4, NULL: 1}
    told = counting.places[WRONG]
    assert len(told) == 3 and f"{file}, line 1 is not JSON" in told[0] and "line 3 has no 'text'" in told[1]
    assert f"left out 4: {WRONG} (the first: {told[0]}; " in counting.lines()[0]


def test_dirty_rows_of_parquet_are_treated_alike(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    write_table(
        pyarrow.table({"text": pyarrow.array([b"one", None, b"\xff", b"two"])}), tmp_path / "a.parquet"
    )
    told = []
    for kind, file in (("jsonl", lines(tmp_path / "a.jsonl", *rows)), ("parquet", tmp_path / "a.parquet")):
        counting = Counting()
        assert list(texts(kind, [file], skip=counting.skip)) == ["one", "two"]
        told.append(counting)
        with pytest.raises(ConfigError, match="mend it, or leave out --strict"):
            list(texts(kind, [file], skip=Counting(strict=True).skip))
    assert [one.left_out[NULL] for one in told] == [1, 1]
    assert told[1].places[UNDECODED][0].startswith(f"{tmp_path / 'a.parquet'}, row 3 is ")


def test_strict_ends_at_the_first_wrong_row(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *ROWS)
    with pytest.raises(ConfigError, match=r"line 2 has no 'text', but 'body': .*leave out --strict"):
        list(texts("jsonl", [file], skip=Counting(strict=True).skip))


def test_a_file_without_a_right_row_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *ROWS)
    with pytest.raises(ConfigError, match=r"line 1 has no 'txt', but 'text'. name the column"):
        list(texts("jsonl", [file], "txt", Counting().skip))
