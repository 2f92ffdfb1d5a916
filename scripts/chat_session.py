"""Write the session in docs/chat.md: `minicpm4 chat` with a real model on a real terminal, keys pressed.

    python scripts/chat_session.py [--output FILE]

Each scene waits for what the page says of it, so that the script fails where a claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.terminal import CTRL_C, CTRL_D, ENTER, PASTE, UP, Terminal  # noqa: E402

PAGE = ROOT / "docs" / "chat.md"
BLOCK = re.compile(r"(<!-- session -->\n).*?(<!-- end of session -->)", re.DOTALL)
OPTIONS = ("--temperature", "0", "--context", "512", "--max-tokens", "48")
LONG = "\n".join(
    f"{n}. Room {n} has a chest with {n + 2} drawers, and in each of them lies a letter."
    for n in range(1, 15)
)
Scene = Callable[[Terminal], None]


class Session:
    """A chat on a terminal, recorded scene by scene."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._shown = folder, 0
        self.written: list[str] = []

    def start(self, *options: str) -> Terminal:
        """Begin a chat; what it shows belongs to the next scene."""
        where = os.environ.get("PYTHONPATH", "")
        env = {
            **os.environ,
            "MINICPM4_CHAT": str(self._folder / "kept"),
            "PYTHONPATH": f"{ROOT / 'src'}:{where}",
        }
        # The slowest kernels: a long text is still being read when Ctrl-C comes, on any machine.
        env |= {"MINICPM4_CALIBRATION": "off", "MINICPM4_ISA": "scalar"}
        command = [sys.executable, "-m", "minicpm4", "chat", *OPTIONS, *options]
        self._shown, self._asked = 0, " ".join(["$ minicpm4 chat", *OPTIONS, *options])
        terminal = Terminal(command, env, columns=180, rows=60)
        terminal.ready()
        return terminal

    def scene(self, caption: str, terminal: Terminal) -> None:
        """Write down what the terminal has shown since the last scene."""
        lines = terminal.text.splitlines()
        new = lines[self._shown :]
        if self._asked:
            new, self._asked = [self._asked, *new], ""
        self._shown = max(0, len(lines) - 1)  # the prompt is the next scene's
        if new and new[-1] == ">":
            new.pop()
        text = "\n".join(new).replace(str(self._folder), "~")
        self.written.append(f"{caption}\n\n```text\n{text}\n```\n")


def say(terminal: Terminal, text: str, *expected: str) -> None:
    """Type a line, see what is expected, and wait for the next prompt."""
    terminal.send(text + ENTER)
    for one in expected:
        terminal.expect(one)
    terminal.ready()


def record(folder: Path) -> str:
    """The whole session."""
    session = Session(folder)
    with session.start() as terminal:
        say(terminal, "What is the capital of France?", "Paris")
        session.scene("1. The first line is the model's name; how it runs is said with `-v` only.", terminal)

        terminal.send(PASTE.format("Say which of these is a fruit:\r/reset\rstone\rapple"))
        terminal.expect("… apple")
        say(terminal, "")
        session.scene("2. Pasted lines are one message, whatever they begin with.", terminal)

        terminal.send("Count from one to ten, in words." + ENTER)
        terminal.expect("one to ten, in words.\n")
        terminal.settle(0.05)
        terminal.send("And from ten to one?")
        terminal.ready("> And from ten to one?")
        session.scene(
            "3. The next question was typed while this was answered. It is not in the answer, and not sent: "
            "it waits behind the prompt.",
            terminal,
        )
        terminal.send("\x15")  # Ctrl-U: the line is emptied
        terminal.settle()
        _second_half(session, terminal, folder)
    with session.start("--continue") as terminal:
        for _ in range(3):  # behind /load and /save
            terminal.send(UP)
            terminal.settle()
        terminal.expect("> Name a river.")
        terminal.send(ENTER)
        terminal.ready()
        session.scene(
            "10. The next day: `--continue` goes on with the conversation; ↑ finds what was typed before.",
            terminal,
        )
        terminal.send(CTRL_D)
        assert terminal.wait() == 0
    return "\n".join(session.written)


def _second_half(session: Session, terminal: Terminal, folder: Path) -> None:
    terminal.send(PASTE.format(LONG) + ENTER)
    terminal.settle(0.05)
    terminal.send(CTRL_C)
    terminal.expect("[taken back")
    terminal.ready()
    session.scene("4. Ctrl-C while a long text is read takes it back.", terminal)

    say(terminal, "/set max_tokens 5", "\nmax_tokens 5")
    say(terminal, "What is the capital of Spain?", "[cut after 5 tokens")
    session.scene("5. Settings confirm themselves, and an answer that a limit cut says which.", terminal)

    say(terminal, "/set stop The", "\nstop The")
    say(terminal, "What is the capital of Spain?", "[the answer is empty]")
    say(terminal, "/set stop none", "\nstop none")
    session.scene("6. An empty answer is remarked.", terminal)

    terminal.send(PASTE.format(LONG))
    terminal.expect("… 14.")
    say(terminal, "", "it was not sent. /reset forgets all of it")
    session.scene("7. A message for which there is no room is not sent, and the way on is named.", terminal)

    say(terminal, "/set drop_oldest on", "\ndrop_oldest on")
    terminal.send(UP)
    terminal.settle()
    terminal.send(UP)
    terminal.settle()
    terminal.send(ENTER)
    terminal.expect("[left out ")
    terminal.ready()
    session.scene("8. The oldest questions are dropped only when asked for, and it is said.", terminal)

    say(terminal, "/reset", "the conversation is forgotten")
    say(terminal, "/set max_tokens 48", "\nmax_tokens 48")
    say(terminal, "Name a river.")
    say(terminal, f"/save {folder}/talk.json", "saved 2 messages")
    terminal.send(f"/save {folder}/talk.json" + ENTER)
    terminal.expect("Write over it? [y/N]")
    say(terminal, "n", "nothing was saved")
    say(terminal, f"/load {folder}/talk.json", "loaded 2 messages")
    session.scene("9. `/save` asks before it writes over a file, `/load` reads it again.", terminal)
    terminal.send(CTRL_D)
    assert terminal.wait() == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the session of docs/chat.md.")
    parser.add_argument("--output", type=Path, default=PAGE, help="where the page is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = record(Path(folder))
    page = BLOCK.sub(lambda found: f"{found[1]}\n{told}\n{found[2]}", PAGE.read_text(encoding="utf-8"))
    arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
