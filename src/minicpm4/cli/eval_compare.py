"""``minicpm4 eval compare``: results of evaluations beside one another, paired item by item."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import check_apart, check_output, write_figures
from minicpm4.cli.terminal import one_line, show, table
from minicpm4.config.strict import check_choice, require
from minicpm4.engine.plan import human
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4.evals.results import Paired, Result

MAX_RESULTS = 32
COLUMNS = (
    "result",
    "score",
    "items",
    "apart from the first",
    "better, worse",
    "s an item",
    "tokens/s",
    "memory",
)


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="What --json of `eval code`, `math` or `ruler` wrote; the first is the base.",
        ),
    ],
    across: Annotated[
        str | None,
        typer.Option(
            metavar="PART,...",
            help="What may differ since it is what you compare: template, tokenizer, settings.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the table there, as Markdown.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw scores and differences with their intervals."),
    ] = None,
) -> None:
    """Compare results of evaluations: scores, differences on the same items, speed and memory.

    Differences are paired, item by item, with a 95% interval over items. Runs whose tasks, template,
    tokenizer or settings (style, sampling) differ are refused; models, weights and attention are what is
    compared. Speeds are those of the runs, so both have to run on the same, quiet machine.
    """
    from minicpm4.evals.results import PARTS, comparable, paired, read_results

    free = [] if across is None else [one.strip() for one in across.split(",")]
    for one in free:
        check_choice("--across", one, [name for name in PARTS if name != "tasks"])
    outputs = {"--markdown": markdown, "--json": json_file, "--plot": plot}
    for name, file in outputs.items():
        check_output(name, file)
        others = [one for other, one in outputs.items() if one is not None and other != name]
        check_apart(name, file, [*files, *others])
    found = [one for file in files for one in read_results(file)]
    require(len(found) > 1, "there is one result alone", "give the files of two runs or more")
    require(len(found) <= MAX_RESULTS, f"{len(found)} results are too many", f"give {MAX_RESULTS} at most")
    comparable(found, free)
    first, *others_ = found
    apart: list[Paired | None] = [None, *(paired(first, other) for other in others_)]
    names = _names(found)
    rows = [_row(*each) for each in zip(names, found, apart, strict=True)]
    shown = table(*COLUMNS, left=1)
    for row in rows:
        shown.add_row(*row)
    show(shown)
    for line in (notes := _notes(found, apart, free)):
        print(one_line(line))
    if markdown is not None:
        write_file(markdown, _markdown(found[0].kind, rows, notes))
    if plot is not None:
        write_file(plot, _picture(names, found, apart))
    if json_file is not None:
        write_figures(json_file, _figures(names, found, apart, free))


def _names(found: list[Result]) -> list[str]:
    """By which results are told apart: models; of one model the options that differ, else numbers."""
    every = dict.fromkeys(key for one in found for key in one.engine)
    differing = [key for key in every if len({repr(one.engine.get(key)) for one in found}) > 1]
    names = []
    for one in found:
        options = [f"{key}={one.engine[key]}" for key in differing if one.engine.get(key) is not None]
        names.append(one_line(", ".join([Path(one.model).name or one.model, *options])))
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _row(name: str, one: Result, apart: Paired | None) -> list[str]:
    mean, half = one.score
    each = one.seconds_each
    return [
        name,
        _percent(mean, half),
        f"{len(one.items):,}"
        if apart is None or apart.count == len(one.items)
        else f"{apart.count:,} shared",
        "" if apart is None else _percent(apart.mean, apart.half, sign="+"),
        "" if apart is None else f"{apart.better:,}, {apart.worse:,}",
        "" if each is None else f"{each:.3g}",
        "" if each is None or not one.new_tokens else f"{one.new_tokens / one.seconds:.3g}",
        human(one.memory) if one.memory else "",
    ]


def _percent(mean: float, half: float | None, sign: str = "") -> str:
    told = f"{100 * mean:{sign}.1f}%"
    return told if half is None else f"{told} ± {100 * half:.1f}"


def _notes(found: list[Result], apart: list[Paired | None], across: list[str]) -> list[str]:
    """What a reader of the table has to know."""
    from minicpm4.evals.results import differing

    first = found[0]
    notes = [f"{first.kind}: hash {first.hash}"]
    despite = sorted({name for one in found for name in differing(first, one) if name in across})
    if despite:
        notes.append(f"note: results differ in {' and '.join(despite)}, too")
    if any(one is not None and one.count < len(first.items) for one in apart):
        notes.append("note: not all items are shared; differences are of those that are")
    if len({one.machine for one in found}) > 1:
        notes.append("note: the runs were on different machines: speeds are not comparable")
    return notes


def _markdown(kind: str, rows: list[list[str]], notes: list[str]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---", *["---:"] * (len(COLUMNS) - 1)]
    head = [line(list(COLUMNS)), "| " + " | ".join(rule) + " |"]
    return "\n".join([*head, *map(line, rows), "", *(one_line(note) + "  " for note in notes), ""])


def _picture(names: list[str], found: list[Result], apart: list[Paired | None]) -> str:
    from minicpm4.plot import Interval, intervals

    speeds = ["" if one.seconds_each is None else f"{one.seconds_each:.3g} s an item" for one in found]
    sides = [
        ", ".join(filter(None, [speed, human(one.memory) if one.memory else ""]))
        for speed, one in zip(speeds, found, strict=True)
    ]
    scores = [
        Interval(name, 100 * one.score[0], None if one.score[1] is None else 100 * one.score[1], side)
        for name, one, side in zip(names, found, sides, strict=True)
    ]
    apart_rows = [
        Interval(name, 100 * one.mean, None if one.half is None else 100 * one.half, f"{one.count:,} items")
        for name, one in zip(names, apart, strict=True)
        if one is not None
    ]
    groups = {"score, %": scores, f"apart from {names[0]}, points": apart_rows}
    return intervals(f"{found[0].kind}: 95% intervals over items", groups)


def _figures(
    names: list[str], found: list[Result], apart: list[Paired | None], across: list[str]
) -> dict[str, Any]:
    from dataclasses import asdict

    rows = []
    for name, one, pair in zip(names, found, apart, strict=True):
        mean, half = one.score
        told = {key: value for key, value in one.as_dict().items() if key != "items"}
        row = {"name": name, **told, "hash": one.hash, "score": mean, "half_width": half}
        rows.append({**row, "of": len(one.items), "apart": None if pair is None else asdict(pair)})
    return {"kind": found[0].kind, "across": across, "compared": rows}
