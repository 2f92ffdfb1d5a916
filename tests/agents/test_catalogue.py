"""The catalogue, and the installation of a server from a package that the test makes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4.agents.mcp import install as installing
from minicpm4.agents.mcp.catalogue import CATALOGUE, Entry
from minicpm4.agents.mcp.install import add_server, install, install_steps, installed, server_table
from minicpm4.errors import ConfigError, ToolServerError, UnsupportedError
from tests.agents.servers import HERE
from tests.cli.conftest import Result, minicpm

Run = Callable[..., Result]
__all__ = ["minicpm"]


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A server of the catalogue whose package is a wheel beside the test."""
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    wheel = tmp_path / "made_sums-1.0-py3-none-any.whl"
    source = (HERE / "made_server.py").read_text()
    files = {
        "made_sums.py": source.replace("manner, *file = sys.argv[1:]", "manner, *file = ['made']"),
        "made_sums-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: made-sums\nVersion: 1.0\n",
        "made_sums-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "made_sums-1.0.dist-info/entry_points.txt": "[console_scripts]\nmade-sums = made_sums:main\n",
        "made_sums-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as out:
        for name, text in files.items():
            out.writestr(name, text)
    made = Entry(name="sums", packages=(f"{wheel}",), program="made-sums")
    monkeypatch.setitem(CATALOGUE, "sums", made)
    return made


def test_the_published_servers_are_there_or_say_why_not() -> None:
    published = [entry.published for entry in CATALOGUE.values() if entry.published]
    assert len(published) == 16 == len(set(published))
    for name, one in CATALOGUE.items():
        assert name == one.name and (one.packages or one.note)
        pinned = all("==" in p or "<" in p for p in one.packages)
        if one.source == "npm":
            pinned = all("@" in p[1:] for p in one.packages)
        assert pinned, name


def test_a_server_is_added_and_works(tmp_path: Path, entry: Entry, minicpm: Run) -> None:
    config = tmp_path / "deep" / "mcp.json"
    done = minicpm("mcp", "add", "sums", f"--config={config}")
    assert done.code == 0 and str(config) in done.out
    table = json.loads(config.read_text())["mcpServers"]["sums"]
    assert Path(table["command"]).exists() and "env" not in table
    words = ("mcp", "call", "sums.add", '{"a": 2, "b": 3}', f"--config={config}")
    assert minicpm(*words, "--allow=sums", "--allow=sums.add").out == "5\n"
    assert minicpm(*words).code == 2, "what is installed is asked for as any other"
    line = next(line for line in minicpm("mcp", "catalogue").out.splitlines() if line.startswith("sums "))
    assert "yes" in line


def test_half_an_installation_is_begun_anew(entry: Entry) -> None:
    home = installing.home_of(entry)
    (home / "env").mkdir(parents=True)
    (home / "env" / "junk").write_text("x")
    assert not installed(entry)
    install(entry)
    assert installed(entry) and not (home / "env" / "junk").exists()


def test_an_installation_that_fails_tells_why_and_is_none(entry: Entry) -> None:
    broken = Entry(name="broken", packages=("./no-such.whl",), program="x")
    with pytest.raises(ToolServerError, match=r"no-such\.whl"):
        install(broken)
    assert not installed(broken)


def test_a_dry_run_installs_nothing(tmp_path: Path, entry: Entry, minicpm: Run) -> None:
    done = minicpm("mcp", "add", "sums", "--dry-run")
    assert "-m pip" in done.out and "made_sums-1.0" in done.out and not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("calculater",), "did you mean 'calculator'"),
        (("pptx",), "cannot be had here"),
        (("filesystem",), "wants folder"),
        (("calculator", "--set=folder=x"), "has no setting folder"),
        (("filesystem", "--set=folder"), "no NAME=VALUE"),
        (("sums", "--as=a b"), "cannot name a server"),
    ],
)
def test_what_cannot_be_added_says_why(entry: Entry, minicpm: Run, words: tuple[str, ...], told: str) -> None:
    done = minicpm("mcp", "add", *words)
    assert done.code == 2 and told in done.err


def test_keys_are_variables_of_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    table = server_table(CATALOGUE["whisper"], {"folder": "/x"})
    assert table["env"] == {"AUDIO_FILES_PATH": "/x", "OPENAI_API_KEY": "${OPENAI_API_KEY}"}
    screen = server_table(CATALOGUE["computer-control"], {})
    assert screen["command"] == "xvfb-run" and screen["args"][0] == "-a"


def test_a_missing_program_of_the_system_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="needs npm"):
        install_steps(CATALOGUE["filesystem"])
    with pytest.raises(UnsupportedError, match="xvfb-run"):
        install_steps(CATALOGUE["computer-control"])


def test_other_servers_of_a_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"a": {"command": "x"}}, "more": 1}))
    add_server(file, "b", {"command": "y"})
    with pytest.raises(ConfigError, match="another server a"):
        add_server(file, "a", {"command": "z"})
    add_server(file, "a", {"command": "z"}, replace=True)
    servers = {"a": {"command": "z"}, "b": {"command": "y"}}
    assert json.loads(file.read_text()) == {"mcpServers": servers, "more": 1}
