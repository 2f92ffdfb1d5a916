"""The table of servers, as other clients write it; and characters that nobody sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.config import ServerConfig, read_config, spec_of
from minicpm4.agents.mcp.hidden import escaped, has_hidden, looks, visible
from minicpm4.agents.mcp.results import Secrets
from minicpm4.errors import ConfigError

HOME = {"HOME": "/home/ann", "TOKEN": "t-1"}


def read(tmp_path: Path, servers: Any, **more: Any) -> ServerConfig:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": servers, **more}))
    return read_config(file, HOME)


def test_what_other_clients_write_is_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "files": {"command": "npx", "args": ["-y", "server-files", "${HOME}/x"], "env": {"LOG": "1"}},
            "far": {"type": "http", "url": "https://a.example/mcp", "headers": {"A": "Bearer ${env:TOKEN}"}},
            "off": {"command": "x", "disabled": True, "timeout": 5},
        },
    )
    files, far, off = found.servers.values()
    assert files.args == ("-y", "server-files", "/home/ann/x") and files.env == {"LOG": "1"}
    assert far.headers == {"A": "Bearer t-1"} and far.url == "https://a.example/mcp"
    assert off.disabled and off.timeout == 5.0 and not files.disabled
    assert found.notes == ()


def test_the_table_of_vs_code_and_defaults_of_variables_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"servers": {"a": {"command": "${BIN:-/bin/a}", "type": "stdio"}}}))
    assert read_config(file, HOME).servers["a"].command == "/bin/a"


def test_what_is_not_followed_is_told(tmp_path: Path) -> None:
    entry = {"command": "x", "autoApprove": ["add"], "comand": "y", "description": "mine"}
    notes = read(tmp_path, {"a": entry}, inputs=[]).notes
    assert len(notes) == 3
    assert any("autoApprove is not followed: nothing runs unasked" in note for note in notes)
    assert any("'comand'" in note and "did you mean 'command'" in note for note in notes)
    assert any("'inputs'" in note for note in notes)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({}, "neither command and url"),
        ({"command": "x", "url": "http://a/"}, "both command and url"),
        ({"url": "ftp://a/"}, "no address"),
        ({"url": "http://ann:pw@a/"}, "user's name"),
        ({"url": "http://a/", "type": "sse"}, "no longer spoken"),
        ({"command": "x", "type": "http"}, "does not fit"),
        ({"command": "x", "timeout": 600_000}, "give seconds"),
        ({"command": "x", "args": "-y"}, "no list"),
        ({"command": "x", "args": ["${input:key}"]}, "not filled in here"),
        ({"command": "x", "env": {"A": 1}}, "env.A is no text"),
        ({"url": "http://a/", "headers": {"A": "x\r\nB: y"}}, "is no header"),
        ({"command": "x", "disabled": "yes"}, "disabled"),
        ({"command": ""}, "is empty"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path: Path, entry: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, {"a": entry})


def test_a_server_whose_variable_is_not_set_is_left_out_and_told(tmp_path: Path) -> None:
    found = read(tmp_path, {"a": {"command": "x", "env": {"KEY": "${NOPE}"}}, "b": {"command": "y"}})
    assert [*found.servers] == ["b"]
    assert "a is not used" in found.notes[0] and "wants the variable NOPE" in found.notes[0]


def test_errors_show_no_value_that_may_be_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, {"a": {"url": "http://a/", "headers": {"Authorization": "s3cret\n"}}})
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("name", ["a__b", "a.b", "", "a b", "-a", "x" * 49, "é"])
def test_names_of_servers_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a server"):
        read(tmp_path, {name: {"command": "x"}})


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differ in case alone"):
        read(tmp_path, {"A": {"command": "x"}, "a": {"command": "y"}})


def test_addresses_are_shown_without_what_may_be_secret(tmp_path: Path) -> None:
    found = read(tmp_path, {"a": {"url": "https://a.example:8443/mcp?key=s3cret"}})
    assert found.servers["a"].address == "https://a.example:8443/mcp?…"


KEY = "sk-live-0123456789"


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"command": "npx", "args": ["-y", "ctx", "--key", "${KEY}"]}, "npx -y ctx --key ${KEY}"),
        ({"command": "npx", "args": ["--key=${env:KEY}", "${DIR}"]}, "npx --key=${KEY} /usr"),
        ({"command": "npx", "args": ["${NOPE:-plain}", "${KEY}"]}, "npx plain ${KEY}"),
        ({"url": "https://a.example/s/${KEY}/mcp?k=${KEY}"}, "https://a.example/s/${KEY}/mcp?…"),
        ({"url": "${URL}/mcp"}, "https://b.example/${URL}/mcp"),
        ({"url": "https://${HOST}:${PORT}/s/${KEY}"}, "https://mcp.b.example:8443/s/${KEY}"),
    ],
)
def test_variables_that_may_be_secret_are_shown_by_their_names(entry: dict[str, Any], shown: str) -> None:
    values = {"KEY": KEY, "DIR": "/usr", "URL": f"https://b.example/{KEY}", "PORT": "8443"}
    spec = spec_of("a", entry, "x", {**values, "HOST": "mcp.b.example"})
    assert spec.address == shown
    assert KEY in (spec.url or " ".join(spec.args)), "it is filled in all the same"
    assert KEY not in Secrets([spec]).hide(f"{spec.url} {spec.args}")


@pytest.mark.parametrize("value", ["\udcff\udc80secret", "\ud800secret-value", "secret\udfff\udc80"])
def test_a_variable_that_is_no_utf8_is_hidden_as_any(value: str) -> None:
    """As Python has bytes of the environment that are none, and half characters of JSON."""
    spec = spec_of("a", {"command": "x", "env": {"API_KEY": "${KEY}"}}, "x", {"KEY": value})
    hide = Secrets([spec]).hide
    assert hide(f"a {value} b") == "a [secret] b" and hide(json.dumps(value)) == '"[secret]"'


HIDDEN = "\u200b\u202e\u2066\u00ad\ufeff\U000e0041\ufe0f\u3164\x1b\u2028"


def test_what_nobody_sees_is_shown_and_kept_from_models() -> None:
    text = f"a{HIDDEN}b\n\tc é 漢字 🙂"
    assert visible(text) == "ab\n\tc é 漢字 🙂"
    assert has_hidden(text) and not has_hidden(visible(text))
    assert escaped("a\u202eb\U000e0041") == "a\\u{202e}b\\u{e0041}"
    assert all(f"\\u{{{ord(char):x}}}" in escaped(text) for char in HIDDEN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("read_file", "read-file"),
        ("read_file", "rеad_file"),  # a Cyrillic letter
        ("list", "1ist"),
        ("modern", "modem"),
        ("read_file", "read\u200b_file"),
        ("readFile", "READFILE"),
        ("résumé", "resume"),
    ],
)
def test_names_that_look_alike_are_found(one: str, other: str) -> None:
    assert looks(one) == looks(other)


def test_other_names_do_not_look_alike() -> None:
    names = ["read_file", "write_file", "add", "read_files", "subtract"]
    assert len({looks(name) for name in names}) == len(names)
