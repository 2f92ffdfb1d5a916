"""The child's side of the talk between cpu_peers.py and a peer: one JSON object a line, each way.

    {"op": "load", "gguf": PATH, "folder": PATH, "threads": N, "room": TOKENS, ...}  ->  {"about": {...}}
    {"op": "measure", "kind": "prefill" | "decode", "depth": D, "tokens": N, "batch": B,
     "variant": NAME}  ->  {"seconds": S}

A peer whose packages are absent answers {"missing": "what to install"}; any other trouble is
{"error": "..."}. Whatever a library prints goes to standard error. Standard library only: peers live
in environments of their own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """One loaded model."""

    def about(self) -> dict[str, Any]:
        """Version, precision and settings."""
        ...

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        """Seconds to run ``tokens`` tokens after ``depth`` others, of ``batch`` sequences each."""
        ...


def serve(load: Callable[[dict[str, Any]], Peer], install: str) -> None:
    """Answer requests until standard input ends. ``load`` may raise ImportError."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                peer = load(request)
                answer: dict[str, Any] = {"about": peer.about()}
            elif peer is None:
                answer = {"error": "nothing is loaded"}
            elif request["op"] == "measure":
                point = {key: request[key] for key in ("kind", "depth", "tokens", "variant", "batch")}
                answer = {"seconds": peer.measure(**point)}
            else:
                extra = {key: value for key, value in request.items() if key != "op"}
                answer = getattr(peer, request["op"])(**extra)
        except ImportError as error:
            answer = {"missing": f"{error}; {install}"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
