"""A folder with all that the pages' commands read: texts, chats, a server of tools; a small model, a head."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from minicpm4.cli.kept_chats import KeptChats
from minicpm4.model.source import open_model
from tests.agents.test_data import XLAM
from tests.documents.pages import ROOT
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.drafts import make_draft

TEXT = "There are 7 tests of the press. The tests of last week found nothing. All tests end in May. "
CALL = {"name": "calculator__calculate", "arguments": {"expression": "6 * 7"}}
TOOL = {"name": CALL["name"], "description": "Tell what an expression is.", "parameters": {"type": "object"}}


def make_world(folder: Path) -> None:
    for name in ("examples", "docs", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("report.txt", "appendix.txt", "my_text.txt", "other_text.txt"):
        (folder / name).write_text(f"This is {name}. " + TEXT * (3 if "text" not in name else 60))
    talk = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Elbe."}]
    (folder / "chats.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 12)
    call = {"id": "c1", "type": "function", "function": CALL}
    talk = [
        {"role": "user", "content": "What is 6 * 7?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    tools = [{"type": "function", "function": TOOL}]
    (folder / "talks.jsonl").write_text(json.dumps({"messages": talk, "tools": tools}) + "\n")
    (folder / "talks.tools.json").write_text(json.dumps([TOOL]))
    (folder / "queries.jsonl").write_text(json.dumps({"query": "What is 6 * 7?", "answer": "42"}) + "\n")
    # What comes through a pipe, as in these tests, is no conversation that is kept.
    KeptChats(folder / "chats").save("smollm2-135m-instruct", [{"role": "user", "content": "Name a river."}])
    for name in ("FILE.json", "xlam_function_calling_60k.json"):
        (folder / name).write_text(json.dumps([XLAM]))
    server = {
        "command": sys.executable,
        "args": [str(ROOT / "tests" / "agents" / "made_server.py"), "calculator"],
    }
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": {"calculator": server}}))


def make_models(folder: Path) -> None:
    make_draft(folder / "head", open_model(str(make_checkpoint(folder / "model"))).config)
