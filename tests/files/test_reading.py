"""Files of strangers are bounded, whatever is in them, and refused with the caller's error."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError, ConfigError, TextError
from minicpm4.files import parse_json, read_bytes, read_json, read_text, reading

REFUSED = {
    b"[" * 100_000: "nested too deep",
    b'{"a": ': "is not JSON",
    b"[1]": "holds a list, not a table",
    b'{"a": "\xff"}': "is not UTF-8: invalid start byte at byte 7",
    b'{"a": NaN}': "NaN is no number",
    b'{"a": -Infinity}': "-Infinity is no number",
    b'{"a": ' + b"9" * 301 + b"}": "an integer has 301 digits",
    b'{"a": ' + b"9" * 5000 + b"}": "an integer has 5000 digits",
    b'{"a": "' + b"x" * 200_000 + b'"}': "has 200009 bytes, the limit is 150000",
}


@pytest.mark.parametrize("content", REFUSED, ids=REFUSED.values())
def test_what_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(TextError) as caught:
        read_json(file, 150_000, TextError, "fetch it again")
    assert str(file) in caught.value.condition and REFUSED[content] in caught.value.condition
    assert caught.value.remedy == "fetch it again"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read {file}: "):
            read_text(file, 10, ConfigError)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_file_without_end_is_cut_at_the_limit() -> None:
    with pytest.raises(TextError, match="/dev/zero has 11 bytes, the limit is 10"):
        read_bytes(Path("/dev/zero"), 10, TextError)


def test_a_table_that_may_be_absent(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none", 10, TextError, optional=True) == {}
    with pytest.raises(TextError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path, 10, TextError, optional=True)


def test_a_good_table(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes('{"a": [1, -2.5e3, "ä", null, {}]}'.encode())
    assert read_json(file, 100, TextError) == {"a": [1, -2500.0, "ä", None, {}]}


def test_constants_and_names_that_occur_twice() -> None:
    assert parse_json("[Infinity]", "it", TextError, constants=True) == [float("inf")]
    assert parse_json('{"a": 1, "a": 2}', "it", TextError) == {"a": 2}
    with pytest.raises(CheckpointError, match="it is not JSON: a name occurs twice"):
        parse_json(b'[{"a": 1, "a": 2}]', "it", CheckpointError, distinct=True)


@pytest.mark.parametrize("number", ["1e999", "-1e400"])
def test_a_number_that_python_reads_as_infinity_is_one(number: str) -> None:
    with pytest.raises(ConfigError, match=f"it is not JSON: {number} is more than a number of 64 bits holds"):
        parse_json(f'{{"a": [{number}]}}', "it", ConfigError)
    assert math.isinf(parse_json(number, "it", ConfigError, constants=True))


@pytest.mark.parametrize("written", ['[{}, {"a": [1]}]', '{"a": {"b": 1}}', "[[], [], []]"])
@pytest.mark.parametrize("kind", [str, bytes])
def test_values_without_end_are_not_made(written: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    content: str | bytes = written if kind is str else written.encode()
    monkeypatch.setattr(reading, "MAX_VALUES", 6)
    assert parse_json(content, "it", TextError) == json.loads(written)
    monkeypatch.setattr(reading, "MAX_VALUES", 3)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(TextError, match="it is not JSON: it holds over 3 values"):
        parse_json(content, "it", TextError)


@pytest.mark.parametrize("text", ["a,b,c,d:e[f{", "\\", '"', '\\",,,,', ',,"\\",,'])
def test_marks_within_texts_are_no_values(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_VALUES", 3)
    assert parse_json(json.dumps([text, text]), "it", TextError) == [text, text]


def test_what_is_no_json_is_counted_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_VALUES", 3)
    for text in ('[",,,,', '"" "" "" "" "" ",,,,"', '[",,,,\\"'):
        with pytest.raises(TextError, match="is not JSON"):
            parse_json(text, "it", TextError)
