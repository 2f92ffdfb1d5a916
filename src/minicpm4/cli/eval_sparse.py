"""``minicpm4 eval sparse``: what sparse attention costs a model, and which setting to take."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import (
    EngineFlags,
    check_outputs,
    expand,
    number,
    parse_sparse,
    texts_or_manual,
    then_written,
    write_figures,
)
from minicpm4.cli.terminal import one_line, progress_bar, progress_or_lines, show, table
from minicpm4.config import SparseConfig
from minicpm4.config.sparse import AUTO
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import Kept, json_text, write_file

if TYPE_CHECKING:
    from minicpm4.engine.load import Inspection
    from minicpm4.evals.sparse import Cost, Layout, Result

LENGTH = 8000
MAX_SETTINGS = 32
_ENGINE = EngineFlags()
_REFUSED = ("attention", "sparse", "context", "draft", "draft_model_path")


@expand
def sparse(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    *,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text to read; several may be given. Default: Python's manual."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help=f"Tokens of the text. Default: {LENGTH:,}, or the model's context if shorter.",
        ),
    ] = None,
    loss: Annotated[
        str, typer.Option(metavar="SHARE%", help="What running text and looking up may lose.")
    ] = "1%",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Try this setting, as for --sparse; may be given several times. Default: eight of them, and "
            "the checkpoint's own.",
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Keep what is named, for `--sparse auto` with this model.")
    ] = False,
    speeds: Annotated[
        bool, typer.Option(help="Time every setting, too; on a busy machine that says nothing.")
    ] = True,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FOLDER", help="Keep each reading there, and go on from there."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.svg",
            help="Draw recall by layer and head, of the setting that is named, as a heat map.",
        ),
    ] = None,
    engine: EngineFlags = _ENGINE,
) -> None:
    """Read a text with dense attention and several settings of sparse attention, and tell what each loses.

    A passage near the start stands again at the end: there a model looks up, or does not find. Shown are the
    loss of running text against dense attention, the share of what looking up gains that is lost, recall (how
    much of what dense attention looks at is in the chosen blocks; far: of what is neither at the start nor in
    the window), and speeds, which are rough. Named is the setting that reads least within --loss of both.
    """
    wanted = _share(loss)
    if length is not None:
        number("--length", length, 1 << 24, least=512)
    for name in _REFUSED:
        option = "--" + name.replace("_", "-")
        require(
            getattr(engine, name) is None,
            f"{option} is not for eval sparse",
            "leave it out: settings to try are --setting, tokens --length",
        )
    check_outputs({"--json": json_file, "--plot": plot}, [model, *(text or [])])
    content = texts_or_manual(text or [])
    found, settings, layout = _prepared(model, engine, length, setting or [], content)
    about = _about(found, layout, settings, engine)
    kept = None if keep is None else Kept(keep, about)
    results, times = _measure(found, layout, settings, kept, speeds)
    _tell(found, results, times, about, wanted, json_file, plot, write)


def _share(text: str) -> float:
    """A share of ``1%``. Raises ConfigError."""
    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    right = text.strip().endswith("%") and 0 <= value < 1
    require(
        right,
        f"--loss {text:.50} is no share",
        "write a percentage from 0 to below 100, with its sign, as in 1%",
    )
    return value


def _prepared(
    model: str, engine: EngineFlags, length: int | None, asked: Sequence[str], content: str
) -> tuple[Inspection, list[SparseConfig], Layout]:
    """The model, planned for the setting that takes most memory, what is to be tried, and the text."""
    from minicpm4.evals.sparse import CANDIDATES, lay_out
    from minicpm4.model.source import open_model

    config = open_model(model, tuple(engine.ignore_field or ())).config
    own = config.sparse_config or SparseConfig()
    settings = [_setting(text, own) for text in asked] or [
        *CANDIDATES,
        *([] if config.sparse_config is None else [own.at_once]),
    ]
    settings = list(dict.fromkeys(settings))
    require(
        len(settings) <= MAX_SETTINGS,
        f"{len(settings)} settings are too many",
        f"give {MAX_SETTINGS} at most",
    )
    longest = config.max_position_embeddings
    size = min(LENGTH, longest) if length is None else length
    require(
        size <= longest,
        f"--length {size:,} is more than the {longest:,} tokens of context of {model}",
        "give a smaller one",
    )
    finest = min(settings, key=lambda one: one.kernel_stride)
    found = engine.inspect(model, attention="sparse", sparse=finest, context=size)
    tokenizer = found.text.tokenizer
    # Enough characters for that many tokens, if there are so many: a manual of megabytes takes long.
    ids = tokenizer.encode(content[: 16 * size], add_special_tokens=False, parse_special=False)
    return found, settings, lay_out(tokenizer.with_prefix([]), ids, size)


def _setting(text: str, own: SparseConfig) -> SparseConfig:
    require(
        text.strip().lower() != AUTO,
        f"--setting {text.strip()} has no meaning: what is measured here is what auto takes",
        "write key=value, separated by commas",
    )
    values: dict[str, Any] = parse_sparse(text, "--setting")
    return replace(own, **{"dense_len": -1, **values})


def _about(
    found: Inspection, layout: Layout, settings: Sequence[SparseConfig], engine: EngineFlags
) -> dict[str, Any]:
    from minicpm4.engine.sparse_presets import identity
    from minicpm4.evals.results import hash_of
    from minicpm4.evals.sparse import name_of

    return {
        "kind": "sparse",
        "model": found.source.name,
        "identity": identity(found.checkpoint, found.config),
        "weights": hash_of(found.origin),
        "length": len(layout.ids),
        "passage": layout.passage,
        "hash": hashlib.sha256(json_text(list(layout.ids)).encode()).hexdigest()[:16],
        "settings": [name_of(one) for one in settings],
        "engine": engine.told(),
    }


def _measure(
    found: Inspection, layout: Layout, settings: Sequence[SparseConfig], kept: Kept | None, speeds: bool
) -> tuple[list[Result], dict[str, dict[str, float]]]:
    from minicpm4.evals.sparse import Reader, measure, time_settings

    def reader() -> Reader:
        print(found.ops.description, file=sys.stderr)
        return Reader(found)

    with progress_or_lines("reading", "tokens") as progress:
        results = measure(reader, layout, settings, kept, progress)
    if not speeds:
        return results, {}
    with progress_bar("timing", "settings") as progress:
        times = time_settings(found, len(layout.ids), settings, kept, progress)
    return results, times


def _tell(
    found: Inspection,
    results: Sequence[Result],
    times: Mapping[str, Mapping[str, float]],
    about: Mapping[str, Any],
    wanted: float,
    json_file: Path | None,
    plot: Path | None,
    write: bool,
) -> None:
    from minicpm4.evals.sparse import cheapest, costs, heat

    judged = costs(results)
    best = cheapest(judged, wanted)
    name = Path(about["model"]).name
    told = {**about, **_here(found), "loss": wanted, "named": best and best.result.name}

    def picture(file: Path) -> None:
        shown = best or min(judged, key=lambda one: max(one.running, one.copy or 0.0))
        write_file(file, heat(f"{name}: recall of {shown.result.name}", shown.result))

    with then_written(
        (json_file, lambda file: write_figures(file, {**told, "results": _rows(results, judged, times)})),
        (plot if judged else None, picture),
    ):
        _show(results[0], judged, times)
        if judged and judged[0].copy is None:
            print("note: this model gains nothing by looking a passage up, so only running text is judged")
        if best is None:
            print(f"none of these loses at most {100 * wanted:g}%: take dense attention")
        else:
            least = f"--attention sparse --sparse {best.result.name}"
            print(f"within {100 * wanted:g}% least is read with {least}")
    if write:
        _write(found, about, results[0], best, times)


def _show(dense: Result, judged: Sequence[Cost], times: Mapping[str, Mapping[str, float]]) -> None:
    shown = table(
        "setting",
        "blocks",
        "cache read",
        "running",
        "looking up",
        "recall",
        "far",
        "prefill",
        "decode",
        left=1,
    )
    copy = f"{dense.copy:.3f} (first {dense.original:.3f})"
    speeds = ("1", "1") if times else ("–", "–")
    shown.add_row("dense", "100%", "100%", f"{dense.running:.3f}", copy, "100%", "100%", *speeds)
    for one in judged:
        half = "" if one.half is None else f" +- {one.half:.1%}"
        lost = f"{one.result.copy:.3f}" + ("" if one.copy is None else f" ({one.copy:.1%} lost)")
        recall: Mapping[str, Any] = one.result.recall or {}
        rates = times.get(one.result.name, {})
        shown.add_row(
            one.result.name,
            f"{one.result.blocks:.0%}",
            f"{one.result.cache:.0%}",
            f"{one.running:+.1%}{half}",
            lost,
            *("–" if recall.get(key) is None else f"{recall[key]:.1%}" for key in ("mean", "far")),
            *(f"{rates[kind]:.2f}x" if rates else "–" for kind in ("prefill", "decode")),
        )
    show(shown)


def _here(found: Inspection) -> dict[str, Any]:
    """Where and when this was measured."""
    from minicpm4.machine import cpu_name

    return {"date": date.today().isoformat(), "cpu": cpu_name(), "kernels": found.ops.description}


def _rows(
    results: Sequence[Result], judged: Sequence[Cost], times: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    rows = [results[0].as_dict()]
    for one in judged:
        lost = {"running": one.running, "half_width": one.half, "looking_up": one.copy}
        rows.append({**one.result.as_dict(), "lost": lost, "times": dict(times.get(one.result.name, {}))})
    return rows


def _write(
    found: Inspection,
    about: Mapping[str, Any],
    dense: Result,
    best: Cost | None,
    times: Mapping[str, Mapping[str, float]],
) -> None:
    from minicpm4.engine.sparse_presets import Preset, save

    if best is None:
        raise ConfigError("no setting is within --loss: nothing was kept", "give a greater --loss")
    assert best.result.sparse is not None
    figures = {
        "cache_read": round(best.result.cache, 4),
        "blocks_read": round(best.result.blocks, 4),
        "running_lost": round(best.running, 5),
        "looking_up_lost": None if best.copy is None else round(best.copy, 5),
        "dense_running": round(dense.running, 4),
        **{kind: round(rate, 2) for kind, rate in times.get(best.result.name, {}).items()},
    }
    preset = Preset(
        model=Path(about["model"]).name[:200],
        date=date.today().isoformat(),
        length=about["length"],
        sparse=best.result.sparse,
        figures=figures,
    )
    print(f"kept for --sparse auto: {one_line(str(save(found.checkpoint, found.config, preset)))}")
