"""What a terminal gets to see."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from minicpm4.cli.terminal import (
    between_words,
    one_line,
    pace,
    progress_bar,
    sanitize,
    show,
    table,
    write_text,
    writing,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain\n\ttext é 你好 🙂", "plain\n\ttext é 你好 🙂"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("over\rwritten \x08\x7f", "overwritten "),
        ("\x9b2J\x90 C1", "2J C1"),
        ("\x00null", "null"),
    ],
)
def test_control_characters_are_dropped(text: str, safe: str) -> None:
    assert sanitize(text) == safe


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_cells_of_tables_steer_no_terminal(stream: type[io.StringIO]) -> None:
    made, out = table("server", "calls"), stream()
    made.add_row("a\x1b]0;title\x07\x9b31m", "3")
    show(made, out)
    assert "a]0;title31m" in out.getvalue() and not {"\x07", "\x9b"} & {*out.getvalue()}
    assert "\x1b]" not in out.getvalue()


def test_lines_of_a_log_steer_no_terminal() -> None:
    """Of the server, and of commands that keep no log: names of files, and in files, are strangers'."""
    code = (
        "import logging, sys; sys.argv = ['minicpm4', '--version']\n"
        "import minicpm4.cli as cli\n"
        "def run(args):\n"
        "    try:\n"
        "        raise ValueError('a\\x1b[31mb')\n"
        "    except ValueError:\n"
        "        logging.getLogger('x').warning('m%s\\n2026 forged', '\\x1b]0;title\\x07', exc_info=True)\n"
        "    return 0\n"
        "cli.run = run\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.startswith("m]0;title 2026 forged\nTraceback")
    assert done.stderr.endswith("ValueError: a[31mb\n")


def test_only_terminals_get_sanitised_text() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    write_text("a\x1bb", pipe)
    write_text("a\x1bb", terminal)
    assert (pipe.getvalue(), terminal.getvalue()) == ("a\x1bb", "ab")


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_words_are_whole_on_a_terminal_and_bytes_as_they_are_elsewhere(tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal, open(tmp_path / "file", "w") as file:
        for stream in (terminal, file):
            with suppress(KeyboardInterrupt), writing(stream) as write:
                write("traveled from the Nor")
                write("th Atlan\x07tic to the")
                raise KeyboardInterrupt  # what is held is shown
        assert os.read(ours, 4096).decode() == "traveled from the\r\nNorth Atlantic to\r\nthe"
        assert between_words("a note of many words in it", terminal) == "a note of many words\nin it"
        assert between_words("a note of many words in it", file) == "a note of many words in it"
    os.close(ours)
    assert (tmp_path / "file").read_bytes() == b"traveled from the North Atlan\x07tic to the"


def test_an_error_stays_on_its_line() -> None:
    assert one_line("bad \x1b[1m name\n  in file") == "bad [1m name in file"


def test_progress_shows_tokens_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("reading", "tokens") as progress:
        assert progress is not None
        progress(512, 4096)
        progress(4096, 4096)
    assert "/4096" in terminal.getvalue() and "tokens/s" in terminal.getvalue()


def test_a_bar_counts_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("rounding", "layers", before=10**6) as progress:
        assert progress is not None
        time.sleep(0.02)
        progress(10**6 + 1, 10**6 + 2)
        progress(10**6 + 2, 10**6 + 2)
    speeds = [float(one.replace(",", "")) for one in re.findall(r"([0-9,.]+) layers/s", terminal.getvalue())]
    assert "1000002/1000002" in terminal.getvalue() and speeds and max(speeds) < 1000


def test_no_progress_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading", "tokens") as progress:
        assert progress is None


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from minicpm4.cli import run; assert run(['--help']) == 0; "
        "heavy = {'numpy', 'tokenizers', 'rich', 'jinja2', 'huggingface_hub', 'minicpm4._cpu'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_what_is_slow_is_told_by_the_piece() -> None:
    assert (pace(0, 3.0, "layers"), pace(3, 0.0, "layers")) == ("", "")
    assert (
        pace(1024, 2.0, "tokens") == "512 tokens/s"
        and pace(8, 6.0, "layers") == "1.3 layers/s"
        and pace(2, 28.4, "layers") == "14 s each"
    )
