"""``minicpm4 mcp`` that is ended by signals, while a server takes no notice of anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.agents.servers import HERE
from tests.waiting import PATIENCE, until

STUBBORN = """
import os, signal, sys, time
from pathlib import Path
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
sys.path.insert(0, sys.argv[1])
from made_server import Made


class Stubborn(Made):
    def call(self, number, name, given):
        self.log.with_suffix(".pid").write_text(f"{os.getpid()}\\n")
        time.sleep(3600)


Stubborn(Path(sys.argv[2])).run()
"""


def lives(process: int) -> bool:
    with suppress(OSError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def calling(folder: Path, obeyed: list[signal.Signals]) -> tuple[subprocess.Popen[str], int]:
    """A command whose call a server does not answer, and that server's process."""
    server, log = folder / "server.py", folder / "log"
    server.write_text(STUBBORN)
    spec = {"command": sys.executable, "args": [str(server), str(HERE), str(log)]}
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": {"x": spec}}))
    words = ["mcp", "call", "x.add", '{"a": 2, "b": 3}', "--config", str(folder / "mcp.json")]
    command = subprocess.Popen(
        [sys.executable, "-m", "minicpm4", *words, "--allow", "x", "--allow", "x.add"],
        env={**os.environ, "MINICPM4_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in {*obeyed}],  # nohup ignores some
    )
    noted = log.with_suffix(".pid")
    until(lambda: (noted.exists() and noted.read_text().endswith("\n")) or command.poll() is not None)
    assert command.poll() is None, command.communicate()
    return command, int(noted.read_text())


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 2, 130),
        ([signal.SIGINT] * 6, 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGTERM] * 2, 143),
        ([signal.SIGHUP], 129),
    ],
    ids=lambda given: "-".join(one.name for one in given) if isinstance(given, list) else "",
)
def test_no_server_outlives_a_command_that_is_ended(
    tmp_path: Path, sent: list[signal.Signals], code: int
) -> None:
    command, process = calling(tmp_path, sent)
    try:
        for one in sent:
            command.send_signal(one)
            time.sleep(0.3)  # the next comes while the first is being obeyed
        out, err = command.communicate(timeout=PATIENCE)
        assert (command.returncode, out, err) in ((code, "", ""), (-sent[-1], "", "")), (out, err)
        until(lambda: not lives(process))
    finally:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
