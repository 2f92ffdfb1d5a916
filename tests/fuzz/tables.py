"""Readers of what users and earlier runs leave: recipes, packed sets, checkpoints, logs, corpora, caches, and
what belongs to MCP."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.config import ServerSpec, read_config
from minicpm4.agents.mcp.inspection import page_of, passed, read_report, write_report
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.models import in_text
from minicpm4.agents.mcp.tools import Tool, named, read_tool
from minicpm4.agents.mcp.transcript import Transcript
from minicpm4.cli.doctor import summary
from minicpm4.config import SparseConfig
from minicpm4.data.shards import Document, ShardSet, write_shards
from minicpm4.data.sources import conversations, texts
from minicpm4.engine.calibration import _read as read_calibration
from minicpm4.engine.calibration import selection
from minicpm4.engine.schemas import checked_schema
from minicpm4.files import read_checksums
from minicpm4.train.metrics import read_metrics
from minicpm4.train.recipe import read_recipe
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import Raw, mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def _toml(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text.replace("NaN", "nan").replace("Infinity", "inf")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value is None else json.dumps(value)


@cache
def _recipes() -> list[dict[str, Any]]:
    import tomllib

    return [tomllib.loads(file.read_text()) for file in sorted(_RECIPES.glob("*.toml"))]


def _draw_recipe(rng: Random) -> bytes:
    table = mutated_value(rng, rng.choice(_recipes()))
    lines = table.items() if isinstance(table, dict) else [("name", table)]
    text = "\n".join(f"{json.dumps(str(key))} = {_toml(value)}" for key, value in lines)
    content = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content, len(content)) if rng.random() < 0.2 else content


def _read_recipe(case: bytes, folder: Path) -> None:
    (folder / "r.toml").write_bytes(case)
    read_recipe(folder / "r.toml")


@cache
def _set() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        documents = [
            Document(tokens=rng.integers(0, 96, length), learn=rng.integers(0, 2, length).astype(bool))
            for length in (5, 30, 7, 60)
        ]
        folder = Path(name) / "s"
        write_shards(folder, documents, vocab_size=96, about={"tokenizer": "t"}, shard_tokens=32)
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def _draw_set(rng: Random) -> bytes:
    files = dict(_set())
    manifest = json.loads(files["manifest.json"])
    if rng.random() < 0.5:
        files["manifest.json"] = mutated_json(rng, manifest)
        if rng.random() < 0.2:
            files["notes.json"] = mutated_json(rng, {"notes": ["a"]})
        return packed(files)
    name = rng.choice([name for name in files if not name.endswith(".json")])
    files[name] = mutated_bytes(rng, files[name], len(files[name]))
    if rng.random() < 0.5:
        size = len(_set()[name])
        files[name] = (files[name] + bytes(size))[:size]
    number, side = name.split(".")
    if rng.random() < 0.8:  # as a hostile set has it: the hash is right
        manifest["shards"][int(number)]["sha256"][side] = hashlib.sha256(files[name]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    return packed(files)


def _read_set(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    data = ShardSet(folder)
    assert data.num_tokens < 1 << 20
    for document in range(min(len(data), 100)):
        data.read(document, 0, int(data.lengths[document]))
    _ = data.notes, data.num_learnt, data.hash
    data.chosen(0.25, held_out=True)
    data.verify()


def _draw_lines(rng: Random) -> bytes:
    kind = rng.choice(["jsonl", "chat", "text", "html", "parquet", "jsonl.gz"])
    chat = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "tools": [],
    }
    lines = [mutated_json(rng, {"text": "hello", "n": 1} if kind != "chat" else chat) for _ in range(3)]
    content = b"\n".join(lines)
    if kind == "html":
        content = b"<html><meta charset=latin-1><body><p>a &amp; b<script>x</script></p></body></html>"
    if kind in ("html", "text") or rng.random() < 0.3:
        content = mutated_bytes(rng, content, len(content))
    if kind == "jsonl.gz":
        import gzip

        content = mutated_bytes(rng, gzip.compress(content), 64)
    return kind.encode() + b"\n" + content


def _read_lines(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    ending = {"chat": "jsonl", "text": "txt"}.get(kind.decode(), kind.decode())
    file = folder / f"a.{ending}"
    file.write_bytes(content)
    if kind == b"chat":
        list(conversations([file]))
    else:
        list(texts({"jsonl.gz": "jsonl"}.get(kind.decode(), kind.decode()), [file]))


def _draw_log(rng: Random) -> bytes:
    lines = [mutated_json(rng, {"step": i, "loss": 2.5, "validation": 2.0, "rate": 0.1}) for i in range(4)]
    return mutated_bytes(rng, b"\n".join(lines), 200)


def _read_log(case: bytes, folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(case)
    read_metrics(folder)


_SERVERS = {
    "mcpServers": {
        "files": {
            "command": "x",
            "args": ["${HOME}", "b"],
            "env": {"A": "${B:-c}"},
            "cwd": "/",
            "timeout": 5,
        },
        "web": {
            "type": "http",
            "url": "https://example.org/mcp",
            "headers": {"Authorization": "Bearer ${T}"},
        },
    }
}
_ALLOWED = {"version": 1, "allowed": {"ab": {"server": "files", "tool": "t", "parts": {"name": "x"}}}}
_TOOL_SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "enum": ["x", "y"], "pattern": "^[a-z]+$", "minLength": 1, "maxLength": 9},
        "b": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        "c": {
            "anyOf": [{"$ref": "#/$defs/d"}, {"type": "array", "items": {"type": "number"}, "maxItems": 3}]
        },
    },
    "required": ["a"],
    "$defs": {
        "d": {"type": "object", "properties": {"e": {"$ref": "#/$defs/d"}}, "additionalProperties": False}
    },
}
_REPORT = {
    "version": 1,
    "model": "m",
    "tools": [
        {"server": "s", "tool": "t", "key": "f", "trials": [{"query": "q", "arguments": {}, "text": "r"}]}
    ],
}
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TRANSCRIPT = {
    "version": 1,
    "model": "m",
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "b"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL | {"id": "2"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "steps": [{"tool": "f", "arguments": {}, "text": "b", "seconds": 0.5}],
}
_CROSSOVER = {"sparse": selection(SparseConfig()), "prefill": 4096, "decode": None}
_CALIBRATION = {
    "version": 1,
    "machine": {"cpu": "x"},
    "model": {"layers": 2, "weights": {"int4": 3}, "kv": "bf16"},
    "values": {"name": "m", "threads": 2, "chunk": 512, "rows": {"1": 5.0}, "crossovers": [_CROSSOVER]},
}


def _draw_agents(rng: Random) -> bytes:
    tables = {"mcp": _SERVERS, "allowed": _ALLOWED, "report": _REPORT, "transcript": _TRANSCRIPT}
    tables |= {
        "calibration": _CALIBRATION,
        "schema": _TOOL_SCHEMA,
        "checksums": {"version": 1, "block": 1 << 24},
    }
    kind = rng.choice(list(tables))
    table = tables[kind]
    if kind == "checksums":
        table = table | {"files": {"a": {"bytes": 1, "sha256": ["00"]}}}
    return kind.encode() + b"\n" + mutated_json(rng, table)


def _read_agents(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    name = {"checksums": "checksums.json"}.get(kind.decode(), "a.json")
    file = folder / name
    file.write_bytes(content)
    if kind == b"mcp":
        read_config(file, {"HOME": "/", "T": "secret"})
    elif kind == b"allowed":
        _use_approvals(Approvals(file))
    elif kind == b"report":
        found = read_report(file)
        passed({}, SimpleNamespace(servers={}), found)
        page_of("m", found).encode()
        write_report(file, "m", found)
        read_report(file)
    elif kind == b"transcript":
        _use_transcript(Transcript.load(file), file)
    elif kind == b"calibration":
        summary(*read_calibration(file))
    elif kind == b"checksums":
        for sums in read_checksums(folder).values():
            sums.check(memoryview(b"a"))
    else:
        _read_schema(content)


def _use_approvals(approvals: Approvals) -> None:
    spec = ServerSpec(name="files", command="x")
    approvals.standing(spec)
    approvals.standing(spec, Tool(server="files", name="t", called="files__t", description=""))
    approvals.forget("files.t")


def _use_transcript(found: Transcript, file: Path) -> None:
    found.as_markdown().encode()
    found.as_training().encode()
    list(map(in_text, found.messages))
    found.save(file)
    Transcript.load(file)


def _read_schema(content: bytes) -> None:
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError):
        return
    told = SimpleNamespace(name="t", description="d", title=None, input_schema=schema, annotations=None)
    named([read_tool("s", told, Limits())])
    checked_schema("a schema", schema)


READERS = [
    Reader(name="recipe", draw=_draw_recipe, read=_read_recipe, share=0.6),
    Reader(name="packed", draw=_draw_set, read=_read_set),
    Reader(name="corpora", draw=_draw_lines, read=_read_lines),
    Reader(name="metrics", draw=_draw_log, read=_read_log),
    Reader(name="tables", draw=_draw_agents, read=_read_agents),
]
