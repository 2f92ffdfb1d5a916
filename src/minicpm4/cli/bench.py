"""``minicpm4 bench``: how fast a model reads and writes on this machine, at any depth."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import (
    IgnoreOption,
    check_outputs,
    expand,
    number,
    numbers,
    require_only,
    sparse_option,
    then_written,
    weight_words,
    words,
    write_figures,
)
from minicpm4.cli.terminal import one_line, progress_bar, show, table
from minicpm4.config.choices import ACTIVATIONS, ATTENTIONS, KV_FORMATS, MAX_CONTEXT
from minicpm4.config.sparse import AUTO
from minicpm4.config.strict import check_choice, require
from minicpm4.errors import ConfigError
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4.evals.speed import Point

RANDOM = "random-minicpm4-0.5b"
MAX_REPEATS = 1000
MAX_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PointFlags:
    """What is timed."""

    depths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="How many tokens come before those that are timed.")
    ] = "0,2048,8192"
    prefill: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="How many tokens are read at each depth; 0: none.")
    ] = "512"
    batch: Annotated[
        str, typer.Option(metavar="SEQUENCES,...", help="How many sequences are decoded together.")
    ] = "1"
    attention: Annotated[str, typer.Option(metavar="NAME,...", help=f"Any of {', '.join(ATTENTIONS)}.")] = (
        "dense,sparse"
    )
    sparse: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Settings of sparse attention, as for generate."),
    ] = None
    chunk: Annotated[int, typer.Option(help="Tokens read in one step.")] = 512

    def attentions(self) -> tuple[str, ...]:
        """Raises ConfigError."""
        names = tuple(dict.fromkeys(part.strip() for part in self.attention.split(",")))
        for name in names:
            check_choice("--attention", name, ATTENTIONS)
        return names

    def points(self, decode: int) -> list[Point]:
        """All of them, where ``decode`` tokens are written at each depth. Raises ConfigError."""
        from minicpm4.evals.speed import Point

        lengths = {
            "prefill": numbers("--prefill", self.prefill, MAX_CONTEXT),
            "decode": [number("--decode", decode, MAX_CONTEXT)],
        }
        batches = numbers("--batch", self.batch, MAX_BATCH, least=1)
        points = [
            Point(kind=kind, attention=name, depth=depth, tokens=tokens, batch=together)  # type: ignore[arg-type]
            for kind, counts in lengths.items()
            for name in self.attentions()
            for tokens in counts
            for together in (batches if kind == "decode" else [1])
            for depth in numbers("--depths", self.depths, MAX_CONTEXT)
            if tokens
        ]
        require(bool(points), "--prefill 0 and --decode 0 leave nothing to measure", "give one of them")
        return points


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFlags:
    """How the model runs."""

    weights: Annotated[str, typer.Option(help=f"{weight_words('as stored; of random models int4')}.")] = (
        "auto"
    )
    kv: Annotated[str, typer.Option(help=f"Keys and values in memory: {words(KV_FORMATS)}.")] = "bf16"
    activations: Annotated[
        str, typer.Option(help="auto (at least 16 bits), or int8: faster on long prompts, less exact.")
    ] = "auto"
    backend: Annotated[str, typer.Option(help="Kernels: auto, cpu, gpu, or ref (NumPy, slow).")] = "auto"
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU kernels.")] = None
    ignore_field: IgnoreOption = None

    def settings(self) -> dict[str, Any]:
        """Arguments of ``LLM``, and of ``BenchOptions``. Raises ConfigError."""
        check_choice("--kv", self.kv, KV_FORMATS)
        check_choice("--activations", self.activations, ACTIVATIONS)
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["ignore_fields"] = tuple(values.pop("ignore_field") or ())
        return values


@expand
def command(
    line: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="Name, folder, .gguf file or hub repository; or random-minicpm4-0.5b (the default), "
            "the shape of MiniCPM4-0.5B with random weights, which needs no files.",
        ),
    ] = RANDOM,
    *,
    timed: PointFlags,
    decode: Annotated[int, typer.Option(help="How many tokens are written at each depth; 0: none.")] = 32,
    runs: RunFlags,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure drafting instead, as for generate: answers of MODEL to prompts of several kinds, "
            "with this drafter and without. Of the other options those count that say how a model runs, and "
            "--decode, --repeats, --json.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often everything is run; medians are shown.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw tokens per second over depth.")
    ] = None,
) -> None:
    """Measure prefill and decode in tokens per second at given depths, dense and sparse.

    Depths are made without running the model, from random keys and values, so that deep ones take no
    longer. The machine's limits are measured in the same run: each figure is also shown as a share
    of the one that binds it: memory bandwidth for decode, float32 matrix products for prefill (more
    than all of it where the kernels use bf16 or 8-bit products, which are faster).
    """
    check_outputs({"--json": json_file, "--plot": plot}, [model])
    number("--repeats", repeats, MAX_REPEATS, least=1)
    if draft is not None:
        _require_draft(line, model)
        number("--decode", decode, MAX_CONTEXT, least=2)
        _run_drafts(model, draft, runs.settings(), decode, repeats, json_file)
        return
    from minicpm4.evals.speed import BenchOptions

    points = timed.points(decode)
    options = BenchOptions(
        attentions=timed.attentions(),
        sparse=sparse_option(timed.sparse),
        chunk=timed.chunk,
        batch=max(point.batch for point in points),
        **runs.settings(),
    )
    _run(model, options, points, repeats, json_file, plot)


def _require_draft(line: typer.Context, model: str) -> None:
    """Raise ConfigError for what says nothing to drafting, and where there is no text to be drafted."""
    from minicpm4.evals.random_model import SHAPES

    read = ("model", "draft", "decode", "repeats", "json_file", *(one.name for one in fields(RunFlags)))
    require_only(line, read, "--draft")
    told = f"{model} has random weights, which no drafter guesses"
    require(model not in SHAPES, told, "name a model with files: minicpm4 bench MODEL --draft NAME")


def _run(
    name: str, options: Any, points: list[Any], repeats: int, json_file: Path | None, plot: Path | None
) -> None:
    from minicpm4.evals import report
    from minicpm4.evals.limits import measure_limits
    from minicpm4.evals.speed import measure

    loaded = load(name, options, max(point.depth + point.tokens for point in points))
    print(one_line(f"{name}: {loaded.notes}; kernels: {loaded.ops.description}"), file=sys.stderr)
    limits = measure_limits(loaded.ops, loaded.ops.threads)
    with progress_bar("measuring", "points") as progress:
        measured = measure(loaded, points, repeats, progress)
    shown = table("run", "attention", "depth", "tokens/s", "spread", "of limit", left=2)
    for one in measured:
        run = report.run_name(one.point)
        share = f"{report.share(loaded, one, limits):.0%}"
        shown.add_row(run, one.point.attention, f"{one.point.depth:,}", _rate(one.rate), _spread(one), share)
    with then_written(
        (json_file, lambda file: write_figures(file, report.as_json(name, loaded, measured, limits))),
        (plot, lambda file: write_file(file, report.svg(name, loaded, measured))),
    ):
        show(shown)
        print(
            f"\nlimits of this machine, same run: memory {limits.bandwidth / 1e9:.1f} GB/s read, "
            f"float32 products {limits.float32 / 1e9:,.0f} GFLOP/s"
        )


def _run_drafts(
    name: str, draft: str, settings: dict[str, Any], tokens: int, repeats: int, json_file: Path | None
) -> None:
    from minicpm4 import LLM
    from minicpm4.evals.draft_prompts import PROMPTS
    from minicpm4.evals.speculation import PLAIN, cases, measure

    if draft == PLAIN:
        raise ConfigError("--draft off leaves nothing to compare", "name a drafter")
    with progress_bar("loading", "layers") as progress:
        llm = LLM(name, draft=draft, max_batch=1, progress=progress, **settings)
    with llm:
        engine: Any = llm.engine
        if engine.drafting is None:
            raise ConfigError(f"--draft {draft} is off on these kernels", "name a drafter")
        print(one_line(f"{name}: {llm.description}"), file=sys.stderr)
        every = cases(llm, list(PROMPTS), (0.0, 1.0))
        drafters = {PLAIN: None, draft: engine.drafting}
        with progress_bar("measuring", "cases") as progress:
            found = measure(llm, drafters, every, tokens=tokens, rounds=repeats, progress=progress)
    shown = table(
        "prompts", "temperature", "tokens/s", "without", "speed-up", "tokens a pass", "right", left=1
    )
    for plain, one in zip(found[::2], found[1::2], strict=True):
        right = "–" if one.right is None else f"{one.right:.0%}"
        rates = [_rate(one.rate), _rate(plain.rate), f"{one.speed_up:.2f}x"]
        shown.add_row(one.case.kind, f"{one.case.temperature:g}", *rates, f"{one.accept_length:.2f}", right)
    with then_written((json_file, lambda file: write_figures(file, [one.as_json() for one in found]))):
        show(shown)
        print(f"\ntokens that differ: {sum(one.differing for one in found)}")


def load(name: str, options: Any, room: int) -> Any:
    """Return a BenchModel of a random model, or of one with files. Raises Minicpm4Error."""
    from minicpm4.engine.sparse_presets import find
    from minicpm4.evals.random_model import open_any
    from minicpm4.evals.speed import BenchModel

    opened = open_any(name, options.weights, options.ignore_fields)
    if options.sparse == AUTO:
        options = replace(options, sparse=find(opened.checkpoint, opened.config, name).sparse)
    with progress_bar("loading", "layers") as progress:
        return BenchModel(opened.checkpoint, opened.config, options, room, progress)


def _spread(one: Any) -> str:
    """A dash where nothing was repeated: one run has no spread."""
    return f"{one.spread:.0%}" if len(one.seconds) > 1 else "–"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
