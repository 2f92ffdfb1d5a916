"""``minicpm4 eval``: how good a model is, measured here."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.eval_code import code
from minicpm4.cli.eval_compare import compare
from minicpm4.cli.eval_math import math
from minicpm4.cli.eval_ruler import ruler
from minicpm4.cli.eval_sparse import sparse
from minicpm4.cli.eval_tasks import tasks
from minicpm4.cli.mcp_bfcl import bfcl
from minicpm4.cli.needles import command as needles
from minicpm4.cli.options import EngineFlags, check_outputs, expand, number, write_figures
from minicpm4.cli.terminal import progress_bar, show, table
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import read_text
from minicpm4.text.bounds import MAX_TEXT_BYTES

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.engine.load import Inspection
    from minicpm4.evals.perplexity import TextLoss
    from minicpm4.evals.results import Result

MAX_MODELS = 8
WINDOW = 2048
_ALL = ""  # all texts together: no file has that name
_DEFAULTS = EngineFlags()


@expand
def ppl(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Name, folder, .gguf file or hub repository; of several, all are compared with the first.",
        ),
    ],
    text: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Text to read; may be given several times.")
    ],
    window: Annotated[
        int | None,
        typer.Option(help=f"Tokens read at a time. Default: {WINDOW:,}, or the model's context if shorter."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens of a window that count, the others come before them. Default: half of it."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    engine: EngineFlags = _DEFAULTS,
) -> None:
    """Read texts and tell how well a model foresees them: loss and perplexity a token, bits a byte.

    Bits a byte compare models with different tokens. Of several models the difference from the first is told
    with a 95% interval, paired over 32 stretches of each text, and all are read in the same windows."""
    from minicpm4.evals.results import FIELD

    require(len(models) <= MAX_MODELS, f"{len(models)} models are too many", f"give {MAX_MODELS} at most")
    require(len(set(models)) == len(models), "a model is given twice", "leave one of the two out")
    names = [str(file) for file in text]
    require(len(set(names)) == len(names), "a text is given twice", "leave one of the two out")
    if window is not None:
        number("--window", window, 1 << 24, least=2)
    if stride is not None:
        number("--stride", stride, 1 << 24 if window is None else window, least=1)
    check_outputs({"--json": json_file}, [*models, *text])
    texts = {str(file): read_text(file, MAX_TEXT_BYTES, ConfigError, "give a file of text") for file in text}
    for name, content in texts.items():
        require(bool(content.strip()), f"{name} holds no text", "give another file")
    inspected = {model: engine.inspect(model) for model in models}
    window = _window(inspected, window)
    found, results = {}, []
    for model, one in inspected.items():
        with engine.load(one) as llm:
            found[model] = _read(llm, texts, window, stride)
            results.append(_result(llm, model, texts, found[model], [window, stride], engine).as_dict())
    if json_file is not None:
        write_figures(json_file, {**_figures(found, names, window, stride, engine), FIELD: results})
    print(f"windows of {window:,} tokens")
    _print(found)


commands = {
    "ppl": ppl,
    "ruler": ruler,
    "niah": needles,
    "sparse": sparse,
    "code": code,
    "math": math,
    "tools": bfcl,
    "compare": compare,
    "tasks": tasks,
}


def _window(inspected: Mapping[str, Inspection], asked: int | None) -> int:
    """Tokens of a window, the same for all: in longer ones a model foresees more. Raises ConfigError."""
    model, least = min(((name, one.plan.context) for name, one in inspected.items()), key=lambda one: one[1])
    size = min(WINDOW, least) if asked is None else asked
    require(
        size <= least,
        f"--window {size:,} is more than the {least:,} tokens of context of {model}",
        "lower it, or give a longer --context",
    )
    return size


def _read(llm: LLM, texts: Mapping[str, str], window: int, stride: int | None) -> dict[str, TextLoss]:
    """Losses by text."""
    from minicpm4.evals.perplexity import read

    print(llm.description, file=sys.stderr)
    losses = {}
    for name, content in texts.items():
        with progress_bar(f"reading {Path(name).name}", "tokens") as progress:
            losses[name] = read(llm, content, window=window, stride=stride, progress=progress)
    return losses


def _result(
    llm: LLM,
    model: str,
    texts: Mapping[str, str],
    losses: Mapping[str, TextLoss],
    settings: list[int | None],
    engine: EngineFlags,
) -> Result:
    """For `eval compare`: bits a byte of each stretch of each text; ``settings``: window and stride."""
    from minicpm4.evals.perplexity import by_stretch, total
    from minicpm4.evals.results import BITS_A_BYTE, hashes_of, result_of

    each = list(losses.values())
    items, weights = by_stretch(each)
    tasks = [hashlib.sha256(one.encode()).hexdigest() for one in texts.values()]
    told: dict[str, Any] = {"kind": "ppl", "model": model, "engine": engine.told()}
    return result_of(
        llm,
        **told,
        hashes=hashes_of(llm, tasks=tasks, settings=settings, chat=False),
        items=items,
        measure=BITS_A_BYTE,
        less=True,
        weights=weights,
        intervals=not total(each).short,
    )


def _print(found: dict[str, dict[str, TextLoss]]) -> None:
    from minicpm4.evals.perplexity import apart, total

    shown = table("model", "text", "tokens", "loss", "perplexity", "bits a byte", "apart", left=2)
    rows: dict[str, dict[str, TextLoss]] = {}
    for model, losses in found.items():
        rows[model] = losses | ({_ALL: total(list(losses.values()))} if len(losses) > 1 else {})
    first = next(iter(rows))
    for model, losses in rows.items():
        for name, one in losses.items():
            by = "" if model == first else _with_interval("+", *apart(rows[first][name], one))
            shown.add_row(
                Path(model).name,
                "all" if name == _ALL else Path(name).name,
                f"{one.tokens:,}",
                f"{one.nll:.4f}",
                f"{one.perplexity:,.3f}",
                _with_interval("", one.bits_per_byte, one.interval),
                by,
            )
    show(shown)


def _with_interval(sign: str, mean: float, half: float | None) -> str:
    told = f"{mean:{sign}.4f}"
    return told if half is None else f"{told} +- {half:.4f}"


def _figures(
    found: dict[str, dict[str, TextLoss]],
    names: list[str],
    window: int,
    stride: int | None,
    engine: EngineFlags,
) -> dict[str, Any]:
    from minicpm4.evals.perplexity import apart, total

    models: dict[str, Any] = {}
    wholes = {model: total(list(losses.values())) for model, losses in found.items()}
    first = next(iter(found))
    for model, losses in found.items():
        models[model] = {
            "texts": {name: one.as_dict() for name, one in losses.items()},
            "all": wholes[model].as_dict(),
        }
        if model != first:
            by, half = apart(wholes[first], wholes[model])
            models[model]["bits_per_byte_apart"] = {"mean": by, "half_width": half}
    told = {"texts": names, "window": window, "stride": stride or "half", "engine": engine.told()}
    return {**told, "models": models}
