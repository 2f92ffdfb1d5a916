"""Standard streams that are closed or full: one line, exit code 2, and no file written in their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
CLOSED = "standard output is closed"
FULL = "error: standard output: No space left on device. send it to another place"


def shell(line: str) -> tuple[int, str, str]:
    """A line of the shell in which ``minicpm4`` is ours."""
    ours = f'minicpm4() {{ "{sys.executable}" -m minicpm4 "$@"; }}; {line}'
    done = subprocess.run(["sh", "-c", ours], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("minicpm4 models >&-", 2, CLOSED),
        ("minicpm4 models <&- >&-", 2, CLOSED),
        ("minicpm4 models <&- >&- 2>&-", 2, ""),
        ("minicpm4 models <&- >/dev/null", 0, ""),
        ("minicpm4 nonsense 2>&-", 2, ""),
        ("minicpm4 nonsense 2>/dev/full", 2, ""),
        ("minicpm4 models >/dev/full", 2, FULL),
        ("minicpm4 --help >/dev/full", 2, FULL),
        ("minicpm4 --version >/dev/full", 2, FULL),
        ("minicpm4 doctor >/dev/full", 2, FULL),
        ("minicpm4 models 1</dev/null", 2, "error: standard output: Bad file descriptor"),
        ("PYTHONUNBUFFERED=1 minicpm4 models >/dev/full", 2, FULL),
        ("minicpm4 models >/dev/full 2>/dev/full", 2, ""),
        ("minicpm4 generate --prompt-file - <&-", 2, "standard input is closed"),
        ("minicpm4 generate <&-", 2, "standard input is closed"),
    ],
)
def test_one_line_and_two(line: str, code: int, said: str) -> None:
    found, out, err = shell(line)
    assert found == code and out == "" and said in err
    assert len(err.splitlines()) == bool(said) and "Traceback" not in err


def test_what_is_opened_takes_no_streams_place(tmp_path: Path) -> None:
    """A file that got the number of standard error would hold what is complained of."""
    file = tmp_path / "a"
    code = (
        f"from minicpm4.cli import streams; streams.mend(); f = open(r'{file}', 'w'); print(f.fileno() > 2)"
    )
    for closed in ("<&-", "2>&-", "<&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -c "{code}" {closed}'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "True\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "write",
    [
        "print('word ' * 20)",
        "sys.stdout.write('word ' * 20 + chr(10))",
        "typer.echo('word ' * 20)",
        "terminal.console(sys.stdout).print('word ' * 20)",
        "terminal.write_text('word ' * 20 + chr(10), sys.stdout)",
    ],
)
def test_a_write_that_fails_before_the_end_names_standard_output(write: str, unbuffered: str) -> None:
    """However it is written; the rest of the command never runs. Of a closed pipe nothing is said."""
    code = (
        "import sys, typer; from minicpm4 import cli; from minicpm4.cli import models, terminal\n"
        f"def command():\n for _ in range(10_000): {write}\n print('done', file=sys.stderr)\n"
        "models.__dict__.pop('commands', None); models.command = command\n"
        "sys.argv[1:] = ['models']; cli.main()"
    )
    for line, status, said in (("> /dev/full", 2, [FULL]), ("| head -1 >&2", 0, ["word " * 20])):
        done = subprocess.run(
            ["sh", "-c", f'PYTHONUNBUFFERED={unbuffered} "{sys.executable}" -c "$0" {line}', code],
            capture_output=True,
            text=True,
            check=False,
        )
        told = [one[: len(said[0])] for one in done.stderr.splitlines()]
        assert (done.returncode, told) == (status, said)
