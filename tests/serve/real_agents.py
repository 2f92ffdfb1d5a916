"""Whether coding agents finish a task of two calls with a model: ``python -m tests.serve.real_agents MODEL``.

No test, since a model may fail where nothing here does: it tells of each agent whether the file was written
and shown, what its server answered, and how long that took. MINICPM4_AGENTS is as in ``agents.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.serve.agents import KEY, MODEL, Agent, claude, codex, opencode, run
from tests.serve.processes import Running, started

AGENTS: dict[str, Agent] = {"codex": codex, "claude": claude, "opencode": opencode}
TASK = "Create a file answer.txt that contains the text forty-two, then show it with cat."
COUNTED = ("prompt_tokens_total", "cached_tokens_total", "generated_tokens_total", "clients_gone_total")


def counted(server: Running) -> dict[str, float]:
    headers = {"Authorization": f"Bearer {KEY}"}
    lines = server.http.get("/metrics", headers=headers).text.splitlines()
    values = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {
        name: sum(float(value) for key, value in values if key.partition("{")[0] == f"minicpm4_{name}")
        for name in COUNTED
    }


def tried(server: Running, name: str, task: str, seconds: float) -> dict[str, Any]:
    """What became of the task."""
    before, began = counted(server), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = run(AGENTS[name], server.address, Path(folder), task, seconds)
            said, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired:
            said, code = "", None
        file = Path(folder) / "work" / "answer.txt"
        written = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    after = counted(server)
    return {
        "agent": name,
        "code": code,
        "written": written is not None and written.strip() == "forty-two",
        "shown": "forty-two" in said,
        "seconds": round(time.monotonic() - began, 1),
        **{key: after[key] - before[key] for key in COUNTED},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--agent", choices=AGENTS, action="append", help="all unless said")
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each agent (%(default)s)")
    parser.add_argument("--serve", default="--sparse dense_len=4096", help="options of serve (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text(KEY + "\n")
        command = ["minicpm4", "serve", args.model, "--name", MODEL, "--port", "0", "--context", "32768"]
        command += ["--max-batch", "4", "--api-key-file", str(keys), *args.serve.split()]
        with started(*command) as server:
            for name in args.agent or AGENTS:
                print(json.dumps(tried(server, name, args.task, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
