"""BFCL's entries put to a model; its checkers, in their own environment, say which answers are right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.catalogue import Entry
from minicpm4.agents.mcp.install import install, program_of
from minicpm4.agents.mcp.models import Model, calls_of, kept_calls
from minicpm4.errors import ToolServerError
from minicpm4.files import Kept, lines_of, parse_json

__all__ = ["BFCL", "answers", "check", "first_of", "read_entries"]

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


def read_entries(categories: Sequence[str]) -> list[dict[str, Any]]:
    """All entries of the categories; the environment is installed if it is not there. Raises
    ToolServerError, UnsupportedError."""
    install(BFCL)
    found = _bridged(["entries", *categories], "")
    for one in found:
        lists = (one.get("messages"), one.get("tools"))
        fine = all(isinstance(some, list) and all(isinstance(each, dict) for each in some) for some in lists)
        if not fine or not isinstance(one.get("category"), str):
            raise ToolServerError(f"BFCL's entry {one['id']} has no category, messages and tools")
    return found


def first_of(entries: Iterable[Mapping[str, Any]], most: int | None) -> list[Mapping[str, Any]]:
    """The first ``most`` of each category; None: all."""
    counts: Counter[str] = Counter()
    kept = []
    for one in entries:
        counts[one["category"]] += 1
        if most is None or counts[one["category"]] <= most:
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
    """What the model calls, in BFCL's form, or why it was ``refused``, and whether the limit of tokens
    ``cut`` it; fewer where ``until`` (by time.monotonic) came first."""
    found: list[dict[str, Any]] = []
    for one in entries:
        ask = partial(calls_of, model, one["messages"], one["tools"])
        given = await kept_calls(kept, ("bfcl", one["id"]), until, ask)
        if given is None:
            return found
        calls = [{name: arguments} for name, arguments in given.calls]
        row = {"id": one["id"], "category": one["category"], "calls": calls, "cut": given.cut}
        found.append({**row, "refused": given.refused} if given.refused else row)
        if told is not None:
            told(len(found))
    return found


def check(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """BFCL's verdicts, by id: ``valid``, and ``why`` not. What the model was not asked is wrong, as BFCL has
    it, where no call is wanted, too. Raises ToolServerError."""
    lines = "".join(json.dumps(one) + "\n" for one in found if "refused" not in one)
    made = {one["id"]: one for one in _bridged(["check"], lines)}
    for one in found:
        if "refused" not in one and not isinstance(made.get(one["id"], {}).get("valid"), bool):
            raise ToolServerError(f"BFCL's checkers said nothing of {one['id']}")
        if "refused" in one:
            made[one["id"]] = {"id": one["id"], "valid": False, "why": f"refused: {one['refused']}"}
    return made


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
    told = [parse_json(line, "BFCL's checkers", ToolServerError) for line in lines_of(done.stdout) if line]
    if not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in told):
        raise ToolServerError("BFCL's checkers wrote something else than tables with an id")
    return told
