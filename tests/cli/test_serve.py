"""``minicpm4 serve`` refuses what cannot be served before it loads a model; tests/serve has the rest."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.cli.serve import KEY_VARIABLE, ServerFlags
from minicpm4.errors import ConfigError
from tests.cli.conftest import Result

KEY = "a-key-of-some-length"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--port", "70000"], "70000"),
        (["--tls-cert", "a.pem"], "both"),
        (["--timeout", "0"], "timeout"),
        (["--drain", "-1"], "drain"),
        (["--max-waiting", "-1"], "max_waiting"),
        (["--max-body", "1"], "max_body"),
        (["--api-key-file", "no-such-file"], "no-such-file"),
        (["--cache-size", "1"], "--cache-dir"),
        (["--cache-dir", "a", "--cache-size", "3GB"], "'3GB' is not a number of GB: write it without a unit"),
        (["--memory", "3GB"], "'3GB' is not a number of GB: write it without a unit"),
        (["--replicas", "0"], "--replicas 0 is outside 1 to 64"),
        (["--cache-dir", "a", "--cache-size", "0"], "--cache-size 0"),
    ],
)
def test_what_cannot_be_served_is_refused(
    minicpm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    result = minicpm("serve", "no-such-model", *options)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1


def test_a_port_that_is_taken(minicpm: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = minicpm("serve", "no-such-model", "--port", str(taken.getsockname()[1]))
    assert result.code == 2 and "another server" in result.err


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key-of-the-environment")
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\nkey-of-somebody-else\n", encoding="utf-8")
    found = ServerFlags(api_key_file=file).settings().api_keys
    assert found == ("key-of-the-environment", KEY, "key-of-somebody-else")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no key"):
        ServerFlags(api_key_file=file).settings()
    file.write_text(f"{KEY}\n# somebody else's\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"keys, line 2: .*8 to 1,024.*comments") as caught:
        ServerFlags(api_key_file=file).settings()
    assert "somebody" not in str(caught.value)
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        ServerFlags().settings()


def test_replicas_without_the_extra_name_it(
    minicpm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "minicpm4.serve.replicas", raising=False)
    result = minicpm("serve", "no-such-model", "--replicas", "2")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "--replicas needs ray" in result.err and "pip install -e '.[serve-ray]'" in result.err
