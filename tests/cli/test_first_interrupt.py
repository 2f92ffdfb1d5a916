"""Ctrl-C while the command is still being imported, from the package's first line on: 130, and not a word.

What a program that uses the package does about signals stays its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signal")

# What pip makes of an entry of project.scripts.
SCRIPT = """import sys
from minicpm4.__main__ import main
if __name__ == '__main__':
    sys.exit(main())
"""
# Interrupts as soon as a module is looked for.
STRIKES = """import os, sys
class Strikes:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["STRIKES"]:
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Strikes())
sys.modules.pop(os.environ["STRIKES"], None)
"""
ASKS = "import signal, minicpm4; print(signal.getsignal(2) is signal.default_int_handler)"


def started(folder: Path, *command: str, ignored: bool = False, **more: str) -> tuple[int, str, str]:
    """Exit code and what was said of a Python that has ``folder`` first on its path."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, **more},
        capture_output=True,
        text=True,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    return done.returncode, done.stdout, done.stderr


def script(folder: Path) -> str:
    (folder / "bin").mkdir()
    (folder / "bin" / "minicpm4").write_text(SCRIPT)
    return str(folder / "bin" / "minicpm4")


@pytest.mark.parametrize(
    ("way", "module"),
    [
        # runpy looks for minicpm4.__main__ before it imports the package, too.
        *(("module", name) for name in ("typing", "minicpm4.lazy", "minicpm4.cli", "typer")),
        *(("script", name) for name in ("typing", "minicpm4.lazy", "minicpm4.__main__", "minicpm4.cli")),
    ],
)
def test_an_interrupted_import_is_no_traceback(tmp_path: Path, way: str, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(STRIKES)
    command = ["-m", "minicpm4"] if way == "module" else [script(tmp_path)]
    assert started(tmp_path, *command, "--version", STRIKES=module) == (130, "", "")


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("way", ["module", "script"])
def test_a_command_starts_as_ever(tmp_path: Path, way: str, ignored: bool) -> None:
    command = ["-m", "minicpm4"] if way == "module" else [script(tmp_path)]
    code, said, error = started(tmp_path, *command, "--version", ignored=ignored)
    assert (code, error) == (0, "") and said.startswith("minicpm4 ")


def test_an_import_leaves_a_programs_signals_alone(tmp_path: Path) -> None:
    for name in ("minicpm4", "other.py"):  # a program of that name which is another
        (tmp_path / name).write_text(ASKS)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(ASKS)
    (tmp_path / "package" / "__main__.py").write_text("")
    ways = [["-c", ASKS], ["other.py"], ["minicpm4"], ["-m", "other", "-m", "minicpm4"], ["-m", "package"]]
    for way in ways:
        assert started(tmp_path, *way) == (0, "True\n", ""), way
    (tmp_path / "sitecustomize.py").write_text(STRIKES)
    assert "KeyboardInterrupt" in started(tmp_path, "-m", "minicpm4.plot", STRIKES="typing")[2]


# Stands for the command: a signal comes while the callback of a weak reference runs, where nothing is caught.
IN_A_CALLBACK = """import os, signal, sys, time, weakref
from minicpm4 import cli
from minicpm4.__main__ import main
from minicpm4.machine.signals import ended_in_order

class Thing:
    pass

def strikes(_):
    signal.raise_signal(getattr(signal, sys.argv[1]))
    for _ in range(100):
        pass

def command():
    with ended_in_order("SIGTERM"):
        thing = Thing()
        kept = weakref.ref(thing, strikes)
        del thing
        time.sleep(20)
        print("went on")

cli.main = command
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_within_a_callback_is_not_lost(tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "strikes.py").write_text(IN_A_CALLBACK)
    assert started(tmp_path, "strikes.py", name) == (code, "", "")


def test_other_exceptions_within_a_callback_are_still_told(tmp_path: Path) -> None:
    text = IN_A_CALLBACK.replace("signal.raise_signal(getattr(signal, sys.argv[1]))", "1 / 0")
    (tmp_path / "strikes.py").write_text(text.replace("time.sleep(20)", ""))
    code, said, errors = started(tmp_path, "strikes.py")
    assert (code, said) == (0, "went on\n") and "Exception ignored" in errors and "ZeroDivision" in errors
