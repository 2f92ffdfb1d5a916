"""The driver's side of the talk with a peer: a child process in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Unavailable(Exception):
    """A peer that cannot take part, and why."""


class Child:
    """One peer with one model loaded; ``environment``: variables to set. Raises Unavailable."""

    def __init__(
        self, python: str, script: str, request: dict[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        command = [python, str(HERE / script)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise Unavailable(f"{python}: {error.strerror}") from error
        try:
            self.about: dict[str, Any] = self.ask({"op": "load", **request})["about"]
        except Unavailable:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, return its answer. Raises Unavailable for any trouble."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Unavailable(f"the process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        for trouble in ("missing", "error"):
            if trouble in answer:
                raise Unavailable(answer[trouble])
        return answer

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=10)  # closes its input, at which it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
