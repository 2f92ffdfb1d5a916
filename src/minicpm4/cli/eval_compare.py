"""``minicpm4 eval compare``: results of evaluations beside one another, paired item by item."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import check_outputs, then_written, write_figures
from minicpm4.cli.terminal import one_line, show, table
from minicpm4.config.strict import check_choice, require
from minicpm4.errors import shortened
from minicpm4.files import write_file
from minicpm4.machine import human

if TYPE_CHECKING:
    from minicpm4.evals.results import Paired, Result
    from minicpm4.plot import Interval

MAX_RESULTS = 32
MAX_NAME = 120  # characters
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
            help="What --json of `eval code`, `math`, `ruler` or `ppl` wrote, --output of `eval tools`, or "
            "lm-evaluation-harness with --log_samples (results_*.json, samples_*.jsonl, or the folder of one "
            "run); the first is the base.",
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

    Differences are paired, item by item (stretch by stretch of texts), with a 95% interval over items. Runs
    whose tasks, template, tokenizer or settings (style, sampling) differ are refused; models, weights and
    attention are what is compared. Speeds are those of the runs, so both have to run on the same, quiet
    machine. Of several kinds, as of the harness's tasks and metrics, each has a table.
    """
    from minicpm4.evals.result_files import read_results
    from minicpm4.evals.results import PARTS

    free = [] if across is None else [one.strip() for one in across.split(",")]
    for one in free:
        check_choice("--across", one, [name for name in PARTS if name != "tasks"])
    check_outputs({"--markdown": markdown, "--json": json_file, "--plot": plot}, files)
    found = [one for file in files for one in read_results(file)]
    require(len(found) > 1, "there is one result alone", "give the files of two runs or more")
    require(len(found) <= MAX_RESULTS, f"{len(found)} results are too many", f"give {MAX_RESULTS} at most")
    groups = _groups(found, free)
    figures = {"across": free, "comparisons": [group.figures() for group in groups]}
    with then_written(
        (markdown, lambda file: write_file(file, "\n".join(group.markdown() for group in groups))),
        (plot, lambda file: write_file(file, _picture(groups))),
        (json_file, lambda file: write_figures(file, figures)),
    ):
        for number, group in enumerate(groups):
            if number:
                print()
            group.show()


def _groups(found: list[Result], across: list[str]) -> list[Group]:
    """By kind, in order; the first of each is its base. Raises ConfigError."""
    from minicpm4.evals.results import comparable

    by_kind: dict[str, list[Result]] = {}
    for one in found:
        by_kind.setdefault(one.kind, []).append(one)
    for kind, some in by_kind.items():
        told = f"{kind} is in one result alone, of {some[0].model}: not compared"
        require(len(some) > 1, told, "compare runs of the same, or leave that file out")
        comparable(some, across)
    return [Group(some, across) for some in by_kind.values()]


class Group:
    """Results of one kind, which may be compared, beside the first."""

    def __init__(self, found: list[Result], across: list[str]) -> None:
        from minicpm4.evals.results import paired

        self.found, self.names = found, _names(found)
        self.apart = [None, *(paired(found[0], other) for other in found[1:])]
        self.kind, self._measure = found[0].kind, found[0].measure
        self._notes = _notes(found, self.apart, across)

    @property
    def _columns(self) -> tuple[str, ...]:
        from minicpm4.evals.results import SHARE

        return (
            COLUMNS
            if self._measure == SHARE
            else tuple(self._measure if one == "score" else one for one in COLUMNS)
        )

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Columns in which something stands, and rows."""
        rows = [_row(*each) for each in zip(self.names, self.found, self.apart, strict=True)]
        told = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
        return [self._columns[place] for place in told], [[row[place] for place in told] for row in rows]

    def show(self) -> None:
        """Print the table."""
        columns, rows = self._table()
        shown = table(*columns, left=1)
        for row in rows:
            shown.add_row(*row)
        show(shown)
        for line in self._notes:
            print(one_line(line))

    def markdown(self) -> str:
        """The table, and what is to be known."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"

        columns, rows = self._table()
        rule = ["---", *["---:"] * (len(columns) - 1)]
        head = [line(columns), "| " + " | ".join(rule) + " |"]
        notes = (one_line(note) + "  " for note in self._notes)
        return "\n".join([*head, *map(line, rows), "", *notes, ""])

    def dots(self) -> dict[str, list[Interval]]:
        """For the picture: scores, and what lies between."""
        from minicpm4.plot import Interval

        unit, points, times = _unit(self._measure)
        speeds = [
            "" if one.seconds_each is None else f"{one.seconds_each:.3g} s an item" for one in self.found
        ]
        memory = [human(one.memory) if one.memory else "" for one in self.found]
        sides = [", ".join(filter(None, pair)) for pair in zip(speeds, memory, strict=True)]

        def dot(name: str, mean: float, half: float | None, side: str) -> Interval:
            return Interval(name, times * mean, None if half is None else times * half, side)

        scores = [
            dot(name, *one.score, side) for name, one, side in zip(self.names, self.found, sides, strict=True)
        ]
        apart = [
            dot(name, one.mean, one.half, f"{one.count:,} items")
            for name, one in zip(self.names, self.apart, strict=True)
            if one is not None
        ]
        return {f"{self.kind}: {unit}": scores, f"{self.kind}: apart from {self.names[0]}, {points}": apart}

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        rows = []
        for name, one, pair in zip(self.names, self.found, self.apart, strict=True):
            mean, half = one.score
            told = {key: value for key, value in one.as_dict().items() if key not in ("items", "weights")}
            row = {"name": name, **told, "hash": one.hash, "score": mean, "half_width": half}
            rows.append({**row, "of": len(one.items), "apart": None if pair is None else asdict(pair)})
        return {"kind": self.kind, "compared": rows}


def _names(found: list[Result]) -> list[str]:
    """By which results are told apart: models; of one model the options that differ, else numbers."""
    every = dict.fromkeys(key for one in found for key in one.engine)
    differing = [key for key in every if len({repr(one.engine.get(key)) for one in found}) > 1]
    names = []
    for one in found:
        options = [f"{key}={one.engine[key]}" for key in differing if one.engine.get(key) is not None]
        names.append(shortened(one_line(", ".join([Path(one.model).name or one.model, *options])), MAX_NAME))
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _row(name: str, one: Result, apart: Paired | None) -> list[str]:
    each = one.seconds_each
    shared = apart is not None and apart.count < len(one.items)
    return [
        name,
        _told(one.measure, *one.score),
        f"{apart.count:,} shared" if apart is not None and shared else f"{len(one.items):,}",
        "" if apart is None else _told(one.measure, apart.mean, apart.half, sign="+"),
        "" if apart is None else f"{apart.better:,}, {apart.worse:,}",
        "" if each is None else f"{each:.3g}",
        "" if each is None or not one.new_tokens else f"{one.new_tokens / one.seconds:.3g}",
        human(one.memory) if one.memory else "",
    ]


def _unit(measure: str) -> tuple[str, str, float]:
    """What a score and a difference are counted in, and how many of these are 1."""
    from minicpm4.evals.results import SHARE

    return ("score, %", "points", 100.0) if measure == SHARE else (measure, measure, 1.0)


def _told(measure: str, mean: float, half: float | None, sign: str = "") -> str:
    from minicpm4.evals.results import SHARE

    if measure == SHARE:
        told, width = f"{100 * mean:{sign}.1f}%", None if half is None else f"{100 * half:.1f}"
    else:
        told, width = f"{mean:{sign}.4f}", None if half is None else f"{half:.4f}"
    return told if width is None else f"{told} ± {width}"


def _notes(found: list[Result], apart: list[Paired | None], across: list[str]) -> list[str]:
    """What a reader of the table has to know."""
    from minicpm4.evals.results import differing

    first = found[0]
    notes = [f"{first.kind}: hash {first.hash}" + (", less is better" if first.less else "")]
    despite = sorted({name for one in found for name in differing(first, one) if name in across})
    if despite:
        notes.append(f"note: results differ in {' and '.join(despite)}, too")
    if any(one is not None and one.count < len(first.items) for one in apart):
        notes.append("note: not all items are shared; differences are of those that are")
    if any(one.cut for one in found):
        counts = ", ".join("unknown" if one.cut is None else f"{one.cut:,}" for one in found)
        notes.append(f"note: so many answers were cut by the limit of tokens: {counts}")
    if any(not one.hashes["tokenizer"] for one in found):
        notes.append("note: not all files say which tokenizer was used")
    if len({one.machine for one in found}) > 1:
        notes.append("note: the runs were on different machines: speeds are not comparable")
    return notes


def _picture(groups: list[Group]) -> str:
    from minicpm4.plot import intervals

    kinds = {one.kind for one in groups}
    title = f"{groups[0].kind}: 95% intervals over items" if len(kinds) == 1 else "95% intervals over items"
    return intervals(title, {label: rows for one in groups for label, rows in one.dots().items()})
