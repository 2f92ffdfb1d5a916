"""`minicpm4 chat` on a real terminal, with keys that are pressed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("prompt_toolkit", reason="prompt_toolkit is not installed here: make setup")
pytest.importorskip("pyte", reason="the terminal of the tests, pyte, is not installed here: make setup")
pytest.importorskip("termios")

from scripts.terminal import CTRL_C, CTRL_D, CTRL_Z, ENTER, PASTE, UP, Terminal
from tests.cli.scripted_chat import CODE, OCEAN
from tests.engine.conftest import require_smollm

ROOT = Path(__file__).parents[2]
Chat = Callable[..., Terminal]


COMMAND = [sys.executable, "-m", "tests.cli.scripted_chat", "chat"]


def environment(folder: Path) -> dict[str, str]:
    """Where what is kept goes to ``folder``."""
    return {**os.environ, "MINICPM4_CHAT": str(folder / "kept"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """Start a chat, and wait for its first prompt."""
    started: list[Terminal] = []

    def start(*options: str) -> Terminal:
        started.append(Terminal([*COMMAND, *options], environment(tmp_path)))
        started[-1].ready()
        return started[-1]

    yield start
    for one in started:
        one.close()


def said(terminal: Terminal, message: str, heard: str) -> None:
    """Say something and see what was heard."""
    terminal.send(message + ENTER)
    terminal.expect(f"heard {heard!r}")
    terminal.ready()


def test_the_first_line_is_the_name_and_internals_come_with_v(chat: Chat) -> None:
    plain = chat()
    assert plain.text.splitlines()[0] == "parrot"
    assert "attention" not in plain.text and "sampling" not in plain.text
    verbose = chat("-v")
    assert verbose.text.splitlines()[0] == "parrot"
    assert "attention: dense; sampling: temperature 0.7" in verbose.text


def test_pasted_lines_are_one_message_and_no_command(chat: Chat) -> None:
    terminal = chat()
    terminal.send(PASTE.format("/reset\r/exit\rand more\n"))
    terminal.expect("and more")
    said(terminal, "", "/reset\n/exit\nand more")
    said(terminal, PASTE.format("a\\\n  b\n"), "a\\\n  b")  # a backslash in it joins nothing
    said(terminal, PASTE.format("one line"), "one line")


def test_a_paste_that_was_rubbed_out_leaves_a_line_like_any(chat: Chat) -> None:
    terminal = chat()
    terminal.send(PASTE.format("a\rb"))
    terminal.expect("… b")
    terminal.send("\x7f" * 3 + "/exit" + ENTER)
    assert terminal.wait() == 0
    assert "heard" not in terminal.text


def test_commands_typed_without_their_slash_are_told(chat: Chat) -> None:
    terminal = chat()
    terminal.send("exit" + ENTER)
    terminal.expect("/exit leaves; a space before exit sends it to the model")
    terminal.ready()
    assert "heard" not in terminal.text
    said(terminal, " exit", " exit")


def test_quotes_backslash_and_alt_enter_make_many_lines(chat: Chat) -> None:
    terminal = chat()
    said(terminal, '"""' + ENTER + "/reset" + ENTER + ' x """', "/reset\n x ")
    said(terminal, "a\\" + ENTER + "b", "a\nb")
    said(terminal, "c\x1b" + ENTER + "d", "c\nd")


def test_what_is_typed_during_an_answer_waits_in_the_next_line(chat: Chat) -> None:
    terminal = chat()
    terminal.send("half" + ENTER)
    terminal.expect("half of it")
    terminal.send("mean\x7ft\x1b[Dtime" + ENTER + "two")
    terminal.settle()
    assert terminal.text.endswith("half of it")
    terminal.send(CTRL_C)
    terminal.expect("… two")
    assert "half of it\n[stopped]\n> meattime\n… two" in terminal.text
    said(terminal, "", "meattime\ntwo")


def test_ctrl_c_before_an_answer_takes_the_question_back(chat: Chat, tmp_path: Path) -> None:
    terminal = chat()
    terminal.send("hang" + ENTER)
    terminal.settle()
    terminal.send(CTRL_C)
    terminal.expect("[taken back")
    terminal.ready()
    said(terminal, "again", "again")
    terminal.send(f"/save {tmp_path / 'talk.json'}" + ENTER)
    terminal.expect("saved 2 messages")


def test_ctrl_c_twice_at_the_prompt_leaves(chat: Chat) -> None:
    terminal = chat()
    terminal.send("half a line" + CTRL_C)
    terminal.expect("Ctrl-C again")
    terminal.ready()
    terminal.send(CTRL_C)
    assert terminal.wait() == 130


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell that stops and continues programs")
def test_ctrl_z_stops_it_and_it_goes_on_as_before(tmp_path: Path) -> None:
    with Terminal(["bash", "--norc", "-i"], {**environment(tmp_path), "PS1": "shell: "}) as terminal:
        terminal.send(f"{' '.join(COMMAND)}{ENTER}")
        terminal.ready()
        terminal.send("half" + ENTER)
        terminal.expect("half of it")
        terminal.send(CTRL_Z)
        terminal.expect("Stopped")
        terminal.send("fg" + ENTER)
        terminal.settle()
        terminal.send("ahead")  # the shell has shown its keys: again, they are not
        terminal.settle()
        assert "ahead" not in terminal.text
        terminal.send(CTRL_C)
        terminal.ready("> ahead")
        terminal.send(CTRL_Z)
        terminal.expect("Stopped", 2)
        terminal.send("fg" + ENTER)
        terminal.settle()
        terminal.send(ENTER)
        terminal.expect("heard 'ahead'")
        terminal.settle()
        terminal.send(CTRL_D)
        terminal.settle()
        terminal.send("exit 7" + ENTER)
        assert terminal.wait() == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
@pytest.mark.parametrize("during", ["prompt", "answer"])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    chat: Chat, number: signal.Signals, during: str
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # what is ignored where the tests run is there, too
    try:
        terminal = chat()
    finally:
        signal.signal(number, before)
    if during == "answer":
        terminal.send("half" + ENTER)
        terminal.expect("half of it")
    assert not terminal.shows_keys
    terminal.process.send_signal(number)
    assert terminal.process.wait(60) == 128 + number
    assert terminal.shows_keys


def test_colours_that_look_like_a_mouse_are_left_out_of_a_line(chat: Chat) -> None:
    terminal = chat()
    terminal.send("a\x1b[31mb\x1b[0mc" + ENTER)
    terminal.expect("heard 'abc'")
    assert "xception" not in terminal.text


def test_answers_and_notes_break_between_words(tmp_path: Path) -> None:
    with Terminal(COMMAND, environment(tmp_path), columns=40) as terminal:
        terminal.ready()
        terminal.send("ocean" + ENTER)
        terminal.expect("iceberg.")
        terminal.ready()
        assert (
            "The iceberg traveled from the North\nAtlantic Ocean, and back.\n```\n"
            f"{CODE[:40]}\n{CODE[40:]}\n```\nThat is all there is to say of the\niceberg.\n>"
        ) in terminal.text
        kept = json.loads((tmp_path / "kept" / "last.json").read_text())
        assert kept["messages"][-1]["content"] == OCEAN
        terminal.send("/reset now" + ENTER)
        terminal.expect("error: /reset takes nothing behind it,\nand has now. leave that out")
        terminal.ready()
        terminal.send("half" + ENTER)
        terminal.expect("half of it")
        terminal.send(CTRL_C)
        terminal.expect("[stopped]")


def test_saving_asks_before_it_writes_over(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("mine")
    terminal = chat()
    said(terminal, "hello", "hello")
    terminal.send(f"/save {file}" + ENTER)
    terminal.expect("Write over it? [y/N]")
    terminal.send("n" + ENTER)
    terminal.expect("nothing was saved")
    terminal.ready()
    assert file.read_text() == "mine"
    terminal.send(f"/save {file}" + ENTER)
    terminal.expect("Write over it? [y/N]", 2)
    terminal.send("y" + ENTER)
    terminal.expect("saved 2 messages")
    assert json.loads(file.read_text())[0] == {"role": "user", "content": "hello"}


def test_history_and_the_conversation_outlive_a_start(chat: Chat, tmp_path: Path) -> None:
    first = chat()
    said(first, "remember me", "remember me")
    first.send(CTRL_D)
    assert first.wait() == 0
    assert (tmp_path / "kept" / "last.json").stat().st_mode & 0o077 == 0
    second = chat("--continue")
    assert "going on after 1 question" in second.text
    second.send(UP)
    second.expect("> remember me")
    second.send(ENTER)
    second.expect("heard 'remember me'")
    second.ready()
    assert len(json.loads((tmp_path / "kept" / "last.json").read_text())["messages"]) == 4


def test_a_full_context_drops_the_oldest_only_when_told_to(chat: Chat) -> None:
    terminal = chat()
    for turn in range(1, 4):
        terminal.send("long" + ENTER)
        terminal.expect("z" * 60, turn)
        terminal.ready()
    terminal.send("x" * 150 + ENTER)
    terminal.expect("it was not sent. /reset forgets all of it")
    terminal.ready()
    terminal.send("/set drop_oldest on" + ENTER)
    terminal.expect("drop_oldest on", 2)
    terminal.ready()
    terminal.send("x" * 150 + ENTER)
    terminal.expect("[left out 2 of 3 questions with their answers, ")
    terminal.expect("heard 'xxx")


def test_empty_and_cut_answers_are_marked_and_settings_confirmed(chat: Chat) -> None:
    terminal = chat("--no-think")
    assert "the chat template of parrot has no such switch" in terminal.text
    terminal.send("nothing" + ENTER)
    terminal.expect("[the answer is empty]")
    terminal.ready()
    terminal.send("/set max_tokens 5" + ENTER)
    terminal.expect("\nmax_tokens 5")
    terminal.ready()
    terminal.send("long" + ENTER)
    terminal.expect("[cut after 5 tokens: --max-tokens allows no more; /set max_tokens N allows more]")
    terminal.ready()
    terminal.send("/reset" + ENTER)
    terminal.expect("the conversation is forgotten, 2 questions")


def test_the_session_in_the_docs_comes_true_again(tmp_path: Path) -> None:
    require_smollm()
    script, page = ROOT / "scripts" / "chat_session.py", tmp_path / "chat.md"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script, "--output", page], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new, shown = (file.read_text(encoding="utf-8") for file in (page, ROOT / "docs" / "chat.md"))
    assert steady(new) == steady(shown), "docs/chat.md is stale: run scripts/chat_session.py"


def steady(page: str) -> list[str]:
    """Lines that no model wrote, without numbers: rounding differs between processors, and so may answers."""
    ours = ("$ ", "> ", "… ", "[", "error: ", "1", "loaded ", "saved ", "#")
    return [re.sub(r"\d+", "N", line) for line in page.splitlines() if line.startswith(ours)]
