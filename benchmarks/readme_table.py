"""Write README.md's table of speeds from a result of cpu_peers.py.

    python benchmarks/readme_table.py benchmarks/results/cpu_peers_CPU_DATE.json

A test checks that the table in README.md is what this makes of the file that the table names.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- speed: {} -->", "<!-- end of speed -->"
BLOCK = re.compile(r"<!-- speed: (\S+) -->\n.*?<!-- end of speed -->", re.DOTALL)
OURS = ("minicpm4 sparse", "minicpm4 dense")
SHAPE = "MiniCPM4-0.5B"  # the model shown


def block(name: str, run: dict[str, Any]) -> str:
    """The table with its markers; ``name``: of the result, a file in benchmarks/results/."""
    model = next(model for model in run["models"] if model["name"].startswith(SHAPE))
    peers = [column["name"] for column in model["columns"] if not column["ours"]]
    heads = [
        "tokens/s",
        *(our.removeprefix("minicpm4 ") for our in OURS),
        *peers,
        "sparse / best",
        "dense / best",
    ]
    limits = model["limits"]
    lines = [
        BEGIN.format(name),
        f"{run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}; {model['name']}; reads "
        f"{limits['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s, float32 products "
        f"{limits['float32_ops_per_s'] / 1e9:.0f} GFLOP/s in the same run.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *(_row(entry, peers) for entry in model["points"]),
        END,
    ]
    return "\n".join(lines)


def _row(entry: dict[str, Any], peers: list[str]) -> str:
    rates = entry["rates"]
    best = max((rates[peer].get("tokens_per_s", 0.0) for peer in peers), default=0.0)
    cells = [entry["label"], *(_rate(rates[name]) for name in (*OURS, *peers))]
    for our in OURS:
        rate = rates[our].get("tokens_per_s")
        cells.append(f"{rate / best:.1f}x" if rate and best else "–")
    return "| " + " | ".join(cells) + " |"


def _rate(rate: dict[str, Any]) -> str:
    value = rate.get("tokens_per_s")
    if value is None:
        return "–"
    text = f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    return "~" + text if rate["estimated"] else text


def replace(readme: str, made: str) -> str:
    """``readme`` with its table replaced. Raises ValueError if it has none."""
    text, count = BLOCK.subn(lambda _: made, readme)
    if count != 1:
        raise ValueError(f"README.md has {count} tables of speeds, not one")
    return text


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    file = Path(sys.argv[1])
    made = block(file.name, json.loads(file.read_text(encoding="utf-8")))
    readme = ROOT / "README.md"
    readme.write_text(replace(readme.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
