"""Write the tables of README.md and docs/performance.md from a result of cpu_peers.py.

    python -m benchmarks.readme_table benchmarks/results/cpu_peers_CPU_DATE.json

A table stands between ``<!-- KIND: FILE -->`` and ``<!-- end of KIND -->``. Kinds: speed (the shape of
MiniCPM4-0.5B), speed of PART (another part of the run), and goals. A test checks that every table is what
this makes of the file that it names.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import goals
from benchmarks.peers.parts import PARTS
from benchmarks.peers.report import limits_text

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BLOCK = re.compile(r"<!-- (speed|speed of [\w.-]+|goals): (\S+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
SHAPE = "minicpm4-0.5b-shape"  # the part shown unless another is named

Load = Callable[[str], dict[str, Any]]  # a result by its file's name


def block(kind: str, name: str, run: dict[str, Any]) -> str:
    """A table with its markers; ``name``: of the result, a file in benchmarks/results/."""
    if kind == "goals":
        head = f"{run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}."
        lines = [head, "", *goals.table(run)]
    else:
        lines = _speed(run, PARTS[kind.removeprefix("speed").removeprefix(" of ") or SHAPE].name)
    return "\n".join([f"<!-- {kind}: {name} -->", *lines, f"<!-- end of {kind} -->"])


def _speed(run: dict[str, Any], part: str) -> list[str]:
    model = next(model for model in run["models"] if model["name"] == part)
    found = [column for column in model["columns"] if column["ours"]]
    flavours = [column.get("flavour", "") for column in found]
    # Sparse before dense: it is what runs on long inputs unless told otherwise.
    found.sort(key=lambda c: (flavours.index(c.get("flavour", "")), c["name"].endswith("dense")))
    ours = [column["name"] for column in found]
    peers = [column["name"] for column in model["columns"] if not column["ours"]]
    short = [name.removeprefix("minicpm4 ") for name in ours]
    heads = ["tokens/s", *short, *peers, *(f"{name} / best" for name in short)]
    return [
        f"{run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}; {model['name']}; "
        f"{limits_text(model['limits'])} in the same run.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *(_row(entry, ours, peers) for entry in model["points"]),
    ]


def _row(entry: dict[str, Any], ours: list[str], peers: list[str]) -> str:
    rates = entry["rates"]
    best = max((rates[peer].get("tokens_per_s", 0.0) for peer in peers), default=0.0)
    cells = [entry["label"], *(_rate(rates[name]) for name in (*ours, *peers))]
    for our in ours:
        rate = rates[our].get("tokens_per_s")
        cells.append(f"{rate / best:.1f}x" if rate and best else "–")
    return "| " + " | ".join(cells) + " |"


def _rate(rate: dict[str, Any]) -> str:
    value = rate.get("tokens_per_s")
    if value is None:
        return "–"
    text = f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    return "~" + text if rate["estimated"] else text


def refresh(page: str, load: Load) -> str:
    """``page`` with each table made anew from the file that it names."""
    return BLOCK.sub(lambda found: block(found[1], found[2], load(found[2])), page)


def replace(page: str, name: str, run: dict[str, Any]) -> str:
    """``page`` with each table made from ``run``, whose file is called ``name``."""
    return BLOCK.sub(lambda found: block(found[1], name, run), page)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    file = Path(sys.argv[1])
    run = json.loads(file.read_text(encoding="utf-8"))
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        page.write_text(replace(before, file.name, run), encoding="utf-8")
        print(f"{page.name}: {len(BLOCK.findall(before))} tables")


if __name__ == "__main__":
    main()
