"""What fields of a form in the page say: by Node, where the page's packages are (make page)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parents[2] / "web"
CHOICES = [["up", "Up"], ["down", "Down"]]
ASK = """
import { buildSync } from "esbuild";
const made = buildSync({ entryPoints: ["src/fields.ts"], format: "esm", write: false }).outputFiles[0].text;
const fields = await import("data:text/javascript," + encodeURIComponent(made));
const asked = JSON.parse(process.argv[1]);
process.stdout.write(JSON.stringify(asked.map(([name, ...given]) => ({ said: fields[name](...given) }))));
"""


@pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "esbuild").is_dir(),
    reason="Node or web/node_modules is not here: make page",
)
def test_fields_say_nothing_where_nobody_said_anything() -> None:
    one, many = ({"kind": kind, "choices": CHOICES} for kind in ("string", "array"))
    number, text, words = ({"kind": kind} for kind in ("number", "string", "array"))
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        (["chosen", one, ["1"]], {"said": "down"}),
        (["chosen", one, [""]], {}),
        (["chosen", one, []], {}),
        (["chosen", many, ["0", "1"]], {"said": ["up", "down"]}),
        (["chosen", many, []], {"said": []}),
        (["typed", number, "2.5"], {"said": 2.5}),
        (["typed", number, "0"], {"said": 0}),
        (["typed", number, " "], {}),
        (["typed", {"kind": "integer"}, ""], {}),
        (["typed", text, ""], {"said": ""}),
        (["typed", words, "a, b,,"], {"said": ["a", "b"]}),
    ]
    command = ["node", "--input-type=module", "-e", ASK, json.dumps([asked for asked, _ in cases])]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [said for _, said in cases]
