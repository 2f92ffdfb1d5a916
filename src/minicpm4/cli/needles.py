"""``minicpm4 needles``: which facts a model finds in long texts."""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import (
    IgnoreOption,
    check_outputs,
    number,
    numbers,
    sparse_option,
    then_written,
    write_figures,
)
from minicpm4.cli.terminal import progress_bar, show, table
from minicpm4.config.strict import require
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.data.corpora import Corpus

MAX_CELLS = 1024
MAX_EACH = 1000


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="Text to hide needles in: a file, a folder of .txt, .md, .rst; or a package, apt:NAME or "
            "pip:NAME==VERSION. Can be given several times.",
        ),
    ],
    *,
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Lengths of the texts.")
    ] = "512,1024,2048,4096",
    depths: Annotated[int, typer.Option(help="Depths, from the beginning to the end.")] = 5,
    each: Annotated[int, typer.Option(help="Needles asked for at each length and depth.")] = 4,
    needles: Annotated[int, typer.Option(help="Needles in each text; one is asked for.")] = 1,
    digits: Annotated[int, typer.Option(help="Digits of a needle's value.")] = 4,
    attention: Annotated[str, typer.Option(help="auto, dense or sparse.")] = "auto",
    sparse: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Settings of sparse attention, as for generate."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Other needles in other places.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU kernels.")] = None,
    ignore_field: IgnoreOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the grid as a heat map.")
    ] = None,
) -> None:
    """Hide a fact at each depth of texts of each length and ask for it at the end.

    "The code of the amber falcon is 4821." stands on a line of its own somewhere in real text; the prompt
    ends with "What is the code of the amber falcon?" and the beginning of the answer. Shown is the share of
    facts that greedy decoding finds, and the share of key/value blocks that was read for it.
    """
    sizes = numbers("--lengths", lengths, 1 << 24, least=1)
    number("--depths", depths, 100, least=1)
    number("--each", each, MAX_EACH, least=1)
    require(
        len(sizes) * depths <= MAX_CELLS,
        f"{len(sizes) * depths} cells are too many",
        f"use {MAX_CELLS} at most",
    )
    check_outputs({"--json": json_file, "--plot": plot}, [model, *text])
    from minicpm4 import LLM
    from minicpm4.evals import needles as evaluation

    places = [i / (depths - 1) for i in range(depths)] if depths > 1 else [0.5]
    llm = LLM(
        model,
        attention=attention,
        sparse=sparse_option(sparse),
        context=max(sizes) + 64,
        max_batch=1,
        threads=threads,
        ignore_fields=tuple(ignore_field or ()),
    )
    print(llm.description, file=sys.stderr)
    wanted = {"needles": needles, "digits": digits, "seed": seed}
    cells = _ask(llm, _corpora(text), sizes, places, each, wanted)
    about = {"model": model, "description": llm.description, **wanted}
    with then_written(
        (json_file, lambda file: write_figures(file, {**about, "cells": evaluation.as_json(cells)})),
        (plot, lambda file: write_file(file, evaluation.svg(f"Needles found: {model}", cells))),
    ):
        _show(cells, sizes, places)


def _corpora(paths: list[str]) -> list[Corpus]:
    from minicpm4.data.corpora import Corpus
    from minicpm4.data.packages import is_package

    return [Corpus(kind="package" if is_package(path) else "text", paths=(path,)) for path in paths]


def _ask(
    llm: LLM, corpora: list[Corpus], sizes: list[int], places: list[float], each: int, wanted: dict[str, int]
) -> list[Any]:
    """The cells of the grid, each of ``each`` needles; ``wanted``: settings of NeedleMaker."""
    from minicpm4.data.needles import NeedleMaker
    from minicpm4.data.packer import pack_texts
    from minicpm4.evals.needles import find

    with tempfile.TemporaryDirectory() as folder:
        haystack = pack_texts(corpora, Path(folder), llm.tokenizer)
        maker = NeedleMaker(llm.tokenizer, haystack, **wanted)
        with progress_bar("asking", "needles") as progress:
            total, done = len(sizes) * len(places) * each, count(1)

            def tick() -> None:
                if progress is not None:
                    progress(next(done), total)

            return find(llm, maker, sizes, places, each, tick)


def _show(cells: list[Any], sizes: list[int], places: list[float]) -> None:
    by_place = {(cell.length, cell.depth): cell for cell in cells}
    shown = table("tokens", *(f"{place:.0%}" for place in places), "found", "blocks read", left=0)
    for size in sizes:
        row = [by_place[size, place] for place in places]
        found = sum(cell.found for cell in row) / sum(cell.asked for cell in row)
        read = sum(cell.read for cell in row) / len(row)
        shown.add_row(
            f"{size:,}", *(f"{cell.found}/{cell.asked}" for cell in row), f"{found:.0%}", f"{read:.1%}"
        )
    show(shown)
