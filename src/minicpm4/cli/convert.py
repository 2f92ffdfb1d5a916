"""``minicpm4 convert``: make a model small, in files that this package and others read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.convert_options import (
    Rounding,
    calibration_of,
    check_files,
    gguf_types,
    layout_of,
    overrides_of,
    refuse,
)
from minicpm4.cli.convert_report import print_conversion
from minicpm4.cli.options import IgnoreOption, write_figures
from minicpm4.cli.terminal import progress_or_lines

if TYPE_CHECKING:
    from minicpm4.evals.conversion import Calibration, Conversion
    from minicpm4.quantize.options import QuantizeOptions


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Known name, folder, .gguf file or hub repository."),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="Where the new model is written: a folder, or a file: .gguf means --to gguf.",
        ),
    ],
    *,
    weights: Annotated[
        str | None,
        typer.Option(
            help="What layers become: int4, int8, ternary, bf16 or f32 (embeddings and head, too), or auto: "
            "they stay as they are stored. int4 unless said, for gguf and llama auto."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="rtn (to nearest, no calibration), awq, gptq, p-gptq (the first tokens of a text do not "
            "count), or either after smoothing, where and as far as that helps: s-gptq (the default), "
            "s-p-gptq."
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale: a multiple of 32 (32; mlx, ternary and with --bits 64; "
            "marlin 128)."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Layout: compressed-tensors (unless said), gptq, awq, marlin (CPM.cu's) or mlx, which other "
            "tools read too; hf: floats of the same values, of the smallest type that holds them; llama: "
            "these without MiniCPM's scales, for what knows Llama alone; gguf: one file.",
        ),
    ] = None,
    gguf_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="GGUF type, such as q4_0, q4_k, q8_0, tq2_0, bf16, of the layers' matrices (of floats: of "
            "all), or PATTERN=TYPE for those in whose name the regular expression is found; the last that "
            "fits counts. Unless said, one that holds what is there to the bit.",
        ),
    ] = None,
    plain_rope: Annotated[
        bool,
        typer.Option(
            "--plain-rope",
            help="Leave rotary scaling out, for what knows none; told is what that changes.",
        ),
    ] = False,
    bits: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="int4: choose formats by matrix (int4, int8; for gguf int5, too), as rounding costs least, "
            "so that all together take at most N bits a weight, scales, embeddings and head included: 5.5.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Of a head of its own: float (as it is, which it stays with int4, int8 and ternary unless "
            "said), or a format such as int8-g64.",
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=FORMAT",
            help="Format of matrices in whose name the regular expression is found: 'down_proj=int8-g64', or "
            "=float. May be given several times; the last that fits counts. With --weights auto these alone "
            "are rounded, to nearest.",
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option(help="Fold a random rotation in first, which spreads outliers.")
    ] = False,
    act_order: Annotated[bool, typer.Option(help="GPTQ: columns of large activations first.")] = False,
    skip_first: Annotated[
        int | None, typer.Option(help="Tokens of each text that p-gptq leaves out (4).")
    ] = None,
    stored_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Store keys and values of these first tokens of a text, as the original gives them, and use "
            "them where a text begins so; auto: what the chat template begins every chat with. Calibration "
            "texts, and windows of --test, begin with it.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text to calibrate on; may be given several times; corpus: Python's manual, English and "
            "code. Unless said the model writes its own.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibration texts (32), and windows of --test.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of each (512).")] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text on which both models are compared afterwards, not one of calibration."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the rotation and of the model's own texts (0).")
    ] = None,
    ignore_field: IgnoreOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report to this file.")
    ] = None,
) -> None:
    """Round a model's weights to few bits, or leave them as they are, and write them as a folder or a file.

    Layer by layer: what is done is kept beside TARGET (TARGET.part) until all is, and the same command goes
    on after an interruption. What was written is opened again, and every value compared with what was
    rounded. The default, smoothed GPTQ, takes minutes for a model of 0.1B and half an hour for one of 1.5B;
    --method rtn takes seconds, and what it loses is one and a half to four times as much."""
    from minicpm4.evals.conversion import convert, measure

    to = layout_of(to, target, weights)
    texts = calibration_of(calibration or (), samples, length)
    check_files(source, target, json_file, calibration or (), test)
    types = gguf_types(to, gguf_type or (), bits)
    weights = weights or ("auto" if to in ("gguf", "llama") else "int4")
    own = overrides_of(override or ())
    asked = Rounding(
        method=method,
        group=group,
        bits=bits,
        head=head,
        rotate=rotate,
        act_order=act_order,
        skip_first=skip_first,
        seed=seed,
        calibrated_on=bool(calibration),
    )
    options = asked.options(to, weights, own)
    calibrated = options is not None and options.calibrated
    if not calibrated and test is None:
        refuse({"--samples": samples, "--length": length}, "no text is read here, {} cuts it", "leave it out")
    if not (calibrated and not calibration) and not rotate:
        refuse({"--seed": seed}, "nothing is drawn here, {} is of that", "leave it out")
    ignored = tuple(ignore_field or ())
    bar = progress_or_lines
    with _told_when_interrupted(target):
        done = convert(
            source, target, options, to, texts, bar, ignored, test, types, plain_rope, own, stored_prefix
        )
    report = _report(source, to, options, own, texts, done)
    if json_file is not None:  # what is known stays known where the comparison below is interrupted
        write_figures(json_file, report)
    found = measure(source, target, done.tests, bar, ignored) if test is not None else None
    if json_file is not None and found is not None:
        write_figures(json_file, report | {"fidelity": found.as_dict()})
    print_conversion(target, done, found)


@contextmanager
def _told_when_interrupted(target: Path) -> Iterator[None]:
    from minicpm4.quantize.work import part_of

    try:
        yield
    except KeyboardInterrupt:
        part = part_of(target)
        kept = "nothing is kept"
        if part.is_dir():
            kept = f"what is done is kept in {part}, the same command goes on"
        if part.is_dir() and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
            kept = f"{target} is there by now; if it is this model, {part} is not needed, remove it"
        print(f"interrupted: {kept}", file=sys.stderr)
        raise


def _report(
    source: str,
    to: str,
    options: QuantizeOptions | None,
    own: Mapping[str, str],
    texts: Calibration,
    done: Conversion,
) -> dict[str, Any]:
    """What --json has; ``own``: formats by pattern."""
    return {
        "model": source,
        "options": asdict(done.options or options) if options else {"overrides": own} if own else None,
        "to": to,
        "calibration": _calibrated(options, texts),
        "tokens": done.tokens,
        "nbytes": done.written.nbytes,
        "source_nbytes": done.source_nbytes,
        "bits": done.written.bits,
        "matrices": [asdict(row) | {"bits": row.bits} for row in done.rows],
        "types": [asdict(row) for row in done.types],
        "notes": done.notes,
        "logits_apart": done.apart,
        "windows": [len(one) for one in done.tests],
        "fidelity": None,
    }


def _calibrated(options: QuantizeOptions | None, texts: Calibration) -> str | list[str] | None:
    """What a report says of it: files, the model's own texts, or nothing."""
    if options is None or not options.calibrated:
        return None
    return [str(file) for file in texts.files] or "own"
