"""Coding agents finish a task of two calls here, each asked as its users do: Codex, Claude Code, opencode.

They are programs for Node that are not installed with this package: MINICPM4_AGENTS names a folder into
which npm has installed ``@openai/codex``, ``@anthropic-ai/claude-code`` and ``opencode-ai``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.processes import started

FOLDER = Path(os.environ.get("MINICPM4_AGENTS", "missing"))
Agent = Callable[[str, Path], tuple[list[str], dict[str, str]]]
KEY = "a-key-of-some-length"
TASK = "Write forty-two into answer.txt and show it."


def program(name: str) -> str:
    found = FOLDER / "node_modules" / ".bin" / name
    if not found.exists():
        pytest.skip(f"{name} is not installed: MINICPM4_AGENTS names no folder of npm that has it")
    return str(found)


def codex(address: str, home: Path) -> tuple[list[str], dict[str, str]]:
    settings = home / "config.toml"
    settings.write_text(
        'model = "scripted"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
        f'base_url = "{address}/v1"\nwire_api = "responses"\nenv_key = "LOCAL_KEY"\n'
    )
    command = [program("codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", TASK]
    return command, {"CODEX_HOME": str(home), "LOCAL_KEY": KEY}


def claude(address: str, home: Path) -> tuple[list[str], dict[str, str]]:
    models = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    settings = {
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        **dict.fromkeys(models, "scripted"),
    }
    return [program("claude"), "-p", TASK, "--allowedTools", "Bash"], settings


def opencode(address: str, home: Path) -> tuple[list[str], dict[str, str]]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{address}/v1", "apiKey": KEY},
        "models": {"scripted": {"tool_call": True}},
    }
    settings = {
        "provider": {"local": provider},
        "model": "local/scripted",
        "small_model": "local/scripted",
        "autoupdate": False,
        "share": "disabled",
    }
    off = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    environment = {f"OPENCODE_DISABLE_{name}": "1" for name in off}
    command = [program("opencode"), "run", TASK]
    return command, {**environment, "OPENCODE_CONFIG_CONTENT": json.dumps(settings)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "tool", "argument"),
    [(codex, "exec_command", "cmd"), (claude, "Bash", "command"), (opencode, "bash", "command")],
)
def test_an_agent_finishes_a_task_of_two_calls(
    agent: Agent, tool: str, argument: str, tmp_path: Path
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    settings = json.dumps({"api_keys": [KEY]})
    with started("tests.serve.agent_server", settings, tool, argument) as server:
        command, more = agent(server.address, home)
        environment = {**os.environ, "HOME": str(home), "PWD": str(work), **more}
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert (work / "answer.txt").read_text() == "forty-two\n"
        assert "It says forty-two." in done.stdout
