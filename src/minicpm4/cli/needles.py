"""``minicpm4 needles``: which facts a model finds in long texts."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from minicpm4.cli.options import parse_sparse
from minicpm4.cli.terminal import progress_bar, show, table
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError

MAX_CELLS = 1024
MAX_EACH = 1000


def command(
    model: Annotated[str, typer.Argument(help="Name, folder, .gguf file or hub repository.")],
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
    sizes = [_whole("--lengths", part) for part in lengths.split(",")]
    require(1 <= depths <= 100, f"--depths {depths} is not from 1 to 100")
    require(1 <= each <= MAX_EACH, f"--each {each} is not from 1 to {MAX_EACH:,}")
    require(
        len(sizes) * depths <= MAX_CELLS,
        f"{len(sizes) * depths} cells are too many",
        f"use {MAX_CELLS} at most",
    )
    for name, file in (("--json", json_file), ("--plot", plot)):
        require(
            file is None or file.absolute().parent.is_dir(),
            f"{name} {file}: there is no such folder",
            "make it first",
        )
    from minicpm4 import LLM
    from minicpm4.data.needles import NeedleMaker
    from minicpm4.evals import needles as evaluation

    places = [i / (depths - 1) for i in range(depths)] if depths > 1 else [0.5]
    llm = LLM(
        model,
        attention=attention,
        sparse=parse_sparse(sparse) if sparse is not None else None,
        context=max(sizes) + 64,
        max_batch=1,
        threads=threads,
    )
    print(llm.description, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        haystack = _pack(text, llm.tokenizer, Path(folder))
        maker = NeedleMaker(llm.tokenizer, haystack, seed=seed, needles=needles, digits=digits)
        with progress_bar("asking", "needles") as progress:
            total, done = len(sizes) * depths * each, 0

            def tick() -> None:
                nonlocal done
                done += 1
                if progress is not None:
                    progress(done, total)

            cells = evaluation.find(llm, maker, sizes, places, each, tick)
    _show(cells, sizes, places)
    if json_file is not None:
        settings = {
            "model": model,
            "description": llm.description,
            "needles": needles,
            "digits": digits,
            "seed": seed,
        }
        found = {**settings, "cells": evaluation.as_json(cells)}
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        plot.write_text(evaluation.svg(f"Needles found: {model}", cells), encoding="utf-8")


def _pack(paths: list[str], tokenizer: Any, folder: Path) -> Any:
    from minicpm4.data.packing import text_documents
    from minicpm4.data.shards import write_shards
    from minicpm4.data.sources import distinct, files_of, texts

    def documents() -> Any:
        for path in paths:
            kind = "package" if path.startswith(("apt:", "pip:")) else "text"
            yield from texts(kind, files_of(kind, [path]))

    made = text_documents(distinct(documents()), tokenizer)
    return write_shards(folder, made, vocab_size=tokenizer.vocab_size, about={})


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


def _whole(option: str, text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) < 1 << 24:
        raise ConfigError(f"{option} has {text.strip()!r}", "give numbers of tokens, as in 512,4096")
    return int(text)
