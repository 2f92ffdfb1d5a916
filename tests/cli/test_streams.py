"""Standard streams that are closed or full: one line, exit code 2, and no file written in their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
CLOSED = "standard output is closed"
FULL = "No space left on device"


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
