"""Servers in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("MINICPM4_PYTHON", sys.executable)  # that has the package: tests/clients has not


@dataclass
class Running:
    """A server that listens."""

    process: subprocess.Popen[str]
    address: str
    said: str
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.address, timeout=PATIENCE)

    def metric(self, name: str) -> float:
        """Of all models together."""
        lines = self.http.get("/metrics").text.splitlines()
        found = [float(line.split()[-1]) for line in lines if line.partition("{")[0].split(" ")[0] == name]
        assert found, f"no metric {name}"
        return sum(found)


@contextmanager
def started(*command: str) -> Iterator[Running]:
    """A server whose first line ends in its address; it is told to end, and must end well."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [PYTHON, "-m", *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert " at http" in line, f"it did not start: {line}"
        running = Running(process, line.split()[-1], line)
        with running.http:
            yield running
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def scripted(**settings: Any) -> Any:
    """A server over a scripted engine (``scripted_server``)."""
    return started("tests.serve.scripted_server", json.dumps(settings))


def small(*arguments: str) -> Any:
    """A server of SmolLM2, or of the models that are named."""
    return started("minicpm4", "serve", "--port", "0", "--threads", "2", "--context", "2048", *arguments)
