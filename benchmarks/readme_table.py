"""Write the tables and pictures of README.md and the guides from a result of cpu_peers.py or quantisation.py.

    python -m benchmarks.readme_table [benchmarks/results/cpu_peers_CPU_DATE.json]

Without a file each table is made anew from the result that it names; with one, all but those of quantisation
show that. A table stands between ``<!-- KIND: FILE -->`` and ``<!-- end of KIND -->``. Kinds: speed (the
shape of MiniCPM4-0.5B), speed of PART (another part of the run), picture of PART (decoding against depth, an
SVG in docs/images/), goals, and quantisation (what few bits cost a model). A test checks that every table and
picture is what this makes of the file that it names.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import goals, quantised
from benchmarks.peers.parts import PARTS
from benchmarks.peers.report import limits_text
from minicpm4.plot import chart

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "quantisation.md")
BLOCK = re.compile(
    r"<!-- (speed|(?:speed|picture) of [\w.-]+|goals|quantisation): (\S+) -->\n.*?<!-- end of \1 -->",
    re.DOTALL,
)
SHAPE = "minicpm4-0.5b-shape"  # the part shown unless another is named

Load = Callable[[str], dict[str, Any]]  # a result by its file's name


def block(kind: str, name: str, run: dict[str, Any]) -> str:
    """A table with its markers; ``name``: of the result, a file in benchmarks/results/."""
    if kind == "goals":
        head = f"{run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}."
        lines = [head, "", *goals.table(run, measured=True)]
    elif kind == "quantisation":
        lines = quantised.table(run)
    elif kind.startswith("picture of "):
        part = kind.removeprefix("picture of ")
        lines = [f"![Tokens a second against depth, {PARTS[part].name}](docs/images/decode-{part}.svg)"]
    else:
        lines = _speed(run, PARTS[kind.removeprefix("speed").removeprefix(" of ") or SHAPE].name)
    return "\n".join([f"<!-- {kind}: {name} -->", *lines, f"<!-- end of {kind} -->"])


def picture(part: str, run: dict[str, Any]) -> str:
    """An SVG of tokens a second while decoding, against depth, of all columns that were measured."""
    model = _model(run, PARTS[part].name)
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in model["points"]:
        if entry["kind"] == "decode" and entry.get("batch", 1) == 1:
            for name, rate in entry["rates"].items():
                if rate.get("tokens_per_s"):
                    curves.setdefault(name, []).append((entry["depth"], rate["tokens_per_s"]))
    title = (
        f"{model['name']}: tokens/s, {run['machine']['cpu']}, {run['threads']} threads, {run['date'][:10]}"
    )
    return chart(title, curves, "tokens before", "tokens per second", log_x=False, log_y=False)


def pictures(page: str, load: Load) -> dict[str, str]:
    """The pictures that ``page`` shows: file names, and what is in them."""
    found = [(kind.removeprefix("picture of "), name) for kind, name in BLOCK.findall(page)
             if kind.startswith("picture of ")]  # fmt: skip
    return {f"decode-{part}.svg": picture(part, load(name)) for part, name in found}


def _model(run: dict[str, Any], part: str) -> dict[str, Any]:
    return next(model for model in run["models"] if model["name"] == part)


def _speed(run: dict[str, Any], part: str) -> list[str]:
    model = _model(run, part)
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
    """``page`` with each table of speeds made from ``run``, whose file is called ``name``."""
    return BLOCK.sub(
        lambda found: found[0] if found[1] == "quantisation" else block(found[1], name, run), page
    )


def main() -> None:
    if len(sys.argv) > 2:
        raise SystemExit(__doc__)

    given: dict[str, dict[str, Any]] = {}  # by its file's name, wherever that lies

    def load(name: str) -> dict[str, Any]:
        if name in given:
            return given[name]
        return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))

    if len(sys.argv) == 2:
        file = Path(sys.argv[1])
        given[file.name] = json.loads(file.read_text(encoding="utf-8"))
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        for name, run in given.items():
            before = replace(before, name, run)
        page.write_text(refresh(before, load), encoding="utf-8")
        for name, svg in pictures(before, load).items():
            IMAGES.joinpath(name).write_text(svg, encoding="utf-8")
        print(f"{page.name}: {len(BLOCK.findall(before))} tables")


if __name__ == "__main__":
    main()
