"""BFCL's entries put to a model; its checkers, in their own environment, say which answers are right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.catalogue import Entry
from minicpm4.agents.mcp.install import install, program_of
from minicpm4.agents.mcp.models import Model, asked
from minicpm4.errors import RequestError, ToolServerError
from minicpm4.files import Kept, finite, parse_json

__all__ = ["BFCL", "answers", "check", "read_entries"]

# Without its dependencies, which are the SDKs of a dozen services: the checkers need these alone.
BFCL = Entry(
    name="bfcl",
    packages=(
        "bfcl-eval==2026.3.23",
        "filelock==3.20.0",
        "tenacity==9.1.2",
        "tree_sitter==0.21.3",
        "tree-sitter-java==0.21.0",
        "tree-sitter-javascript==0.21.4",
    ),
    alone=True,
    program="python",
)
BRIDGE = Path(__file__).with_name("bridge.py")
SECONDS = 600.0


def read_entries(categories: Sequence[str], most: int | None = None) -> list[dict[str, Any]]:
    """Entries of the categories, the first ``most`` of each; the environment is installed if it is not there.
    Raises ToolServerError, UnsupportedError."""
    install(BFCL)
    found = _bridged(["entries", *categories], "")
    if most is None:
        return found
    counts: dict[str, int] = {}
    kept = []
    for one in found:
        counts[one["category"]] = counts.get(one["category"], 0) + 1
        if counts[one["category"]] <= most:
            kept.append(one)
    return kept


async def answers(
    model: Model,
    entries: Iterable[Mapping[str, Any]],
    kept: Kept,
    *,
    until: float = math.inf,
    told: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """What the model calls, in BFCL's form; fewer where ``until`` (by time.monotonic) came first."""
    found: list[dict[str, Any]] = []
    for one in entries:
        calls = kept.get("bfcl", one["id"])
        if calls is None:
            if time.monotonic() > until:
                return found
            calls = await _called(model, one)
            kept.put(calls, "bfcl", one["id"])
        found.append({"id": one["id"], "category": one["category"], "calls": calls})
        if told is not None:
            told(len(found))
    return found


async def _called(model: Model, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        reply = await asked(model, entry["messages"], entry["tools"])
    except RequestError as error:
        raise RequestError(f"{entry['id']}: {error}") from error
    return [{call.name: finite(call.arguments)} for _, call in reply.calls]


def check(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """BFCL's verdicts, by id: ``valid``, and ``why`` not. Raises ToolServerError."""
    lines = "".join(json.dumps(one) + "\n" for one in found)
    return {one["id"]: one for one in _bridged(["check"], lines)}


def _bridged(words: list[str], given: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:  # bfcl-eval makes folders of results where it is told
        variables = {**os.environ, "BFCL_PROJECT_ROOT": folder, "PYTHONPATH": ""}
        command = [str(program_of(BFCL)), "-I", str(BRIDGE), *words]
        try:
            done = subprocess.run(
                command,
                input=given,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                env=variables,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolServerError(f"BFCL's checkers took over {SECONDS:g} s") from error
    if done.returncode:
        raise ToolServerError(f"BFCL's checkers failed: {done.stderr.strip()[-1000:]}")
    return [parse_json(line, "BFCL's checkers", ToolServerError) for line in done.stdout.splitlines()]
