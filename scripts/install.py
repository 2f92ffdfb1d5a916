"""pip install with one line of progress: what is fetched or compiled, and for how long.

    python scripts/install.py --editable . [--also --no-deps PACKAGE==VERSION]...

Arguments are pip's. What follows each ``--also`` is a command of its own, which runs beside the first. An
``--editable`` checkout is built while what it needs is fetched: pip alone would fetch, then build.
Without a terminal a line is printed every ten seconds. When pip fails, the end of what it said is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-v"]
COMPILED = re.compile(r"\[(\d+)/(\d+)\] Building CXX object .*?([\w.]+?)(?:\.cpp)?\.o\b")
STEPS = (
    (re.compile(r"Installing build dependencies"), "fetching build tools"),
    (re.compile(r"Collecting ([\w.\-]+)"), "fetching {0}"),
    (re.compile(r"Downloading .*?/?([\w.]+)-[^/ ]+\.(?:whl|tar\.gz)"), "fetching {0}"),
    (re.compile(r"Installing collected packages"), "installing"),
    (re.compile(r"-- Build files have been written"), "compiling"),  # the first file takes half a minute
)
EVERY = 10.0  # seconds between lines where there is no terminal
SHOWN = 40  # lines of a failure


class Install:
    """One pip, running; ``now`` is what it is at."""

    def __init__(self, arguments: list[str]) -> None:
        self.now, self.lines = "starting", []
        self.process = subprocess.Popen(
            [*PIP, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self.now = step(line) or self.now

    def wait(self) -> int:
        self._reader.join()
        return self.process.wait()


def step(line: str) -> str | None:
    """What a line of pip's output says is being done; None: nothing new."""
    found = COMPILED.search(line)
    if found is not None:
        return f"compiling {found[1]} of {found[2]}"
    for pattern, text in STEPS:
        found = pattern.search(line)
        if found is not None:
            return text.format(*found.groups())
    return None


def commands_of(arguments: list[str]) -> list[list[str]]:
    """What to run beside each other."""
    commands: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--also":
            commands.append([])
        else:
            commands[-1].append(argument)
    for command in commands[:]:
        if "--editable" in command and "--no-deps" not in command:
            at = command.index("--editable")
            target, rest = command[at + 1], command[:at] + command[at + 2 :]
            folder, extras = re.fullmatch(r"(.+?)(?:\[(.*)\])?", target).groups()
            command[:] = ["--no-deps", "--editable", folder]
            commands.append([*dependencies(Path(folder), (extras or "").split(",")), *rest])
    return commands


def dependencies(folder: Path, extras: list[str]) -> list[str]:
    """What a project and some of its extras need, as its pyproject.toml says; extras may name others."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = re.compile(re.escape(project["name"]) + r"\[(.*)\]")
    found, left = list(project["dependencies"]), [extra.strip() for extra in extras if extra.strip()]
    for extra in left:  # grows meanwhile
        for needed in project["optional-dependencies"][extra]:
            inner = own.fullmatch(needed)
            if inner is None:
                found.append(needed)
            else:
                left += [one.strip() for one in inner[1].split(",") if one.strip() not in left]
    return found


def main() -> int:
    commands = commands_of(sys.argv[1:])
    began, running = time.monotonic(), [Install(command) for command in commands]
    try:
        watch(running, began)
    except KeyboardInterrupt:
        for one in running:
            one.process.terminate()
        return 130
    failed = [one for one in running if one.wait()]
    for one in failed:
        print("\n".join(one.lines[-SHOWN:]), file=sys.stderr)
    print(f"{'failed' if failed else 'set up'} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if failed else 0


def watch(running: list[Install], began: float) -> None:
    """Show what is being done until all are done."""
    terminal, said = sys.stderr.isatty(), 0.0
    while any(one.process.poll() is None for one in running):
        passed = time.monotonic() - began
        now = "; ".join(one.now for one in running if one.process.poll() is None)
        if terminal:
            print(f"\r\033[K{passed:4.0f} s  {now[:100]}", end="", file=sys.stderr, flush=True)
        elif passed - said >= EVERY:
            said = passed
            print(f"{passed:4.0f} s  {now[:100]}", file=sys.stderr, flush=True)
        time.sleep(0.2)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
