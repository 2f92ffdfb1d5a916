"""``minicpm4 serve --cache-dir``: what was read before a restart is not read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serve.processes import Running, small

CHAT = "/v1/chat/completions"
RIVER = "The river runs past the mill, under the bridge and on to the sea. " * 30
MESSAGES = [{"role": "user", "content": f"{RIVER}Where does it run?"}]


def ask(running: Running, **more: Any) -> tuple[str, int, int]:
    """The answer, its prompt's tokens and how many of them were cached."""
    body = {"messages": MESSAGES, "max_tokens": 16, "temperature": 0, **more}
    told = running.http.post(CHAT, json=body, timeout=120).json()
    usage = told["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return told["choices"][0]["message"]["content"], usage["prompt_tokens"], cached


def test_the_second_of_two_equal_prompts_is_cached_after_a_restart(tmp_path: Path) -> None:
    with small("--cache-dir", str(tmp_path)) as running:
        text, tokens, cached = ask(running)
        assert tokens > 400 and cached == 0
    with small("--cache-dir", str(tmp_path)) as running:
        again = ask(running)
        assert again == (text, tokens, (tokens - 1) // 64 * 64)
        other = ask(running, messages=[{"role": "user", "content": f"{RIVER}Is it long?"}])
        assert other[2] >= (tokens - 20) // 64 * 64 - 64  # the same beginning
    with small("--cache-dir", str(tmp_path), "--kv", "int8") as running:
        assert ask(running)[2] == 0


def test_a_killed_server_leaves_what_it_had_written(tmp_path: Path) -> None:
    with small("--cache-dir", str(tmp_path)) as running:
        text, tokens, _ = ask(running)
        assert ask(running)[2] == (tokens - 1) // 64 * 64
        running.process.kill()
        assert running.process.wait() != 0
        running.process.returncode = 0  # that was the test's own doing
    with small("--cache-dir", str(tmp_path)) as running:
        again, _, cached = ask(running)
        assert again == text and cached > 0


def test_a_damaged_file_costs_no_answer_and_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small("--cache-dir", str(tmp_path)) as running:
        text, tokens, _ = ask(running)
    files = sorted(tmp_path.rglob("*.page"))
    assert len(files) >= tokens // 64
    for file in files:
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
    capfd.readouterr()
    with small("--cache-dir", str(tmp_path)) as running:
        assert ask(running) == (text, tokens, 0)
    assert capfd.readouterr().err.count("is damaged") == 1
    with small("--cache-dir", str(tmp_path)) as running:
        assert ask(running)[2] > 0  # they were written anew
