"""Coding agents (``agents.py``) finish a task of two calls on a server whose model is scripted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.agents import KEY, MODEL, Agent, claude, codex, opencode, run
from tests.serve.processes import started

TASK = "Write forty-two into answer.txt and show it."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "tool", "argument"),
    [(codex, "exec_command", "cmd"), (claude, "Bash", "command"), (opencode, "bash", "command")],
)
def test_an_agent_finishes_a_task_of_two_calls(
    agent: Agent, tool: str, argument: str, tmp_path: Path
) -> None:
    settings = json.dumps({"api_keys": [KEY]})
    with started("tests.serve.agent_server", settings, MODEL, tool, argument) as server:
        done = run(agent, server.address, tmp_path, TASK, 300)
        assert done.returncode == 0
        assert (tmp_path / "work" / "answer.txt").read_text() == "forty-two\n"
        assert "It says forty-two." in done.stdout
