"""Coding agents, each asked for a task as its users do: Codex, Claude Code, opencode.

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

FOLDER = Path(os.environ.get("MINICPM4_AGENTS", "missing"))
MODEL = "local"  # what the server calls its model
KEY = "a-key-of-some-length"

Agent = Callable[[str, Path, str], tuple[list[str], dict[str, str]]]
"""``agent(the server's address, a home of its own, the task)``: its command, and more environment."""


def program(name: str) -> str:
    found = FOLDER / "node_modules" / ".bin" / name
    if not found.exists():
        pytest.skip(f"{name} is not installed: MINICPM4_AGENTS names no folder of npm that has it")
    return str(found)


def codex(address: str, home: Path, task: str) -> tuple[list[str], dict[str, str]]:
    settings = home / "config.toml"
    settings.write_text(
        f'model = "{MODEL}"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
        f'base_url = "{address}/v1"\nwire_api = "responses"\nenv_key = "LOCAL_KEY"\n'
        "stream_idle_timeout_ms = 3000000\n"
    )
    command = [program("codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", task]
    return command, {"CODEX_HOME": str(home), "LOCAL_KEY": KEY}


def claude(address: str, home: Path, task: str) -> tuple[list[str], dict[str, str]]:
    models = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    settings = {
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "API_TIMEOUT_MS": "3000000",
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "3000000",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        **dict.fromkeys(models, MODEL),
    }
    return [program("claude"), "-p", task, "--allowedTools", "Bash,Write,Read"], settings


def opencode(address: str, home: Path, task: str) -> tuple[list[str], dict[str, str]]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{address}/v1", "apiKey": KEY},
        "models": {MODEL: {"tool_call": True}},
    }
    settings = {
        "provider": {"local": provider},
        "model": f"local/{MODEL}",
        "small_model": f"local/{MODEL}",
        "autoupdate": False,
        "share": "disabled",
    }
    off = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    environment = {f"OPENCODE_DISABLE_{name}": "1" for name in off}
    return [program("opencode"), "run", task], {
        **environment,
        "OPENCODE_CONFIG_CONTENT": json.dumps(settings),
    }


def run(
    agent: Agent, address: str, folder: Path, task: str, seconds: float
) -> subprocess.CompletedProcess[str]:
    """What an agent does with a task in ``folder / "work"``, and says; at most so many seconds."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    command, more = agent(address, home, task)
    environment = {**os.environ, "HOME": str(home), "PWD": str(work), **more}
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done
