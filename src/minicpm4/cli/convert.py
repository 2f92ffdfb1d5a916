"""``minicpm4 convert``: make a model small, in files that this package and others read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minicpm4.cli.convert_report import print_conversion
from minicpm4.cli.options import IgnoreOption, check_outputs, number, words, write_figures
from minicpm4.cli.terminal import progress_or_lines
from minicpm4.config.choices import WEIGHT_CHOICES
from minicpm4.config.strict import check_choice, require

if TYPE_CHECKING:
    from minicpm4.evals.conversion import Calibration
    from minicpm4.quantize.options import QuantizeOptions

MAX_SAMPLES = 4096
MAX_LENGTH = 1 << 16
_STORED = "weights stay as they are stored, {} is for those that are rounded"


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
    from minicpm4 import zoo
    from minicpm4.evals.calibration_texts import check_texts
    from minicpm4.evals.conversion import Calibration, convert, measure
    from minicpm4.files.gguf_parts import parts_of
    from minicpm4.formats.kinds import float_kinds, rounded_kinds
    from minicpm4.quantize.export import LAYOUTS
    from minicpm4.quantize.gguf_export import GgufTypes
    from minicpm4.quantize.options import SKIP_FIRST, QuantizeOptions
    from minicpm4.quantize.work import part_of

    one_file = target.suffix.lower() == ".gguf"
    to = (
        to
        if to is not None
        else ("gguf" if one_file else "hf" if weights in float_kinds() else "compressed-tensors")
    )
    check_choice("--to", to, list(LAYOUTS))
    require(
        to == "gguf" or not one_file,
        f"{target} is the name of a GGUF file, --to {to} writes a folder",
        "name a folder, or use --to gguf",
    )
    require(
        weights is None or weights in WEIGHT_CHOICES,
        f"--weights {weights!r:.40} is not a choice",
        f"choose {words(WEIGHT_CHOICES)}" + (" and say --group" if "-g" in (weights or "") else ""),
    )
    texts = Calibration(files=tuple(calibration or ()))
    if samples is not None:
        texts = replace(texts, samples=number("--samples", samples, MAX_SAMPLES, least=1))
    if length is not None:
        texts = replace(texts, length=number("--length", length, MAX_LENGTH, least=64))
    texts_read = (*(calibration or ()), *((test,) if test else ()))
    model, part = zoo.resolve(source), part_of(target)
    read = [model.parent / name for name in parts_of(model.name)] if model.name else [model]
    check_outputs({"--json": json_file}, (*read, target, part, *texts_read), (*read, target, part))
    check_texts(calibration or (), test)
    require(to == "gguf" or not gguf_type, f"--to {to} has no types of GGUF", "leave --gguf-type out")
    types = GgufTypes.parse(gguf_type or ())
    require(
        bits is None or not gguf_type,
        "--bits chooses what matrices become, --gguf-type would round them once more",
        "leave --gguf-type out: --override PATTERN=FORMAT says the format of some",
    )
    weights = weights or ("auto" if to in ("gguf", "llama") else "int4")
    options, own = None, _overrides(override or ())
    if weights == "auto":
        _refuse(
            {
                "--method": method,
                "--group": group,
                "--bits": bits,
                "--rotate": rotate or None,
                "--act-order": act_order or None,
                "--skip-first": skip_first,
                "--calibration": calibration,
            },
            _STORED,
            "say what they become: --weights",
        )
        _refuse(
            {"--head": None if head == "float" else head},
            _STORED,
            f"--override lm_head={head} rounds it alone (embed_tokens={head}: one that is tied)",
        )
    else:
        method = method or ("s-gptq" if weights in rounded_kinds() else "rtn")
        require(
            weights not in float_kinds() or group is None,
            f"--weights {weights} has no groups",
            "leave --group out",
        )
        options = QuantizeOptions(
            weights=weights,
            method=method,
            group=_usual_group(to, weights, bits) if group is None else group,
            head=head,
            overrides=own,
            rotate=rotate,
            act_order=act_order,
            bits=bits,
            seed=0 if seed is None else seed,
            skip_first=SKIP_FIRST if skip_first is None else skip_first,
        )
        require(
            options.calibrated or not calibration,
            "--method rtn looks at no text",
            "leave --calibration out",
        )
        require(
            skip_first is None or "p-" in method,
            f"--method {method} leaves no tokens out",
            "leave --skip-first out, or use p-gptq",
        )
    calibrated = options is not None and options.calibrated
    if not calibrated and test is None:
        _refuse(
            {"--samples": samples, "--length": length}, "no text is read here, {} cuts it", "leave it out"
        )
    if not (calibrated and not calibration) and not rotate:
        _refuse({"--seed": seed}, "nothing is drawn here, {} is of that", "leave it out")
    ignored = tuple(ignore_field or ())
    bar = progress_or_lines
    with _told_when_interrupted(target):
        done = convert(
            source, target, options, to, texts, bar, ignored, test, types, plain_rope, own, stored_prefix
        )
    report = {
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
    if json_file is not None:  # what is known stays known where the comparison below is interrupted
        write_figures(json_file, report)
    found = measure(source, target, done.tests, bar, ignored) if test is not None else None
    if json_file is not None and found is not None:
        write_figures(json_file, report | {"fidelity": found.as_dict()})
    print_conversion(target, done, found)


def _refuse(given: Mapping[str, object], why: str, remedy: str) -> None:
    """Raise ConfigError for the first of these options that was given: nothing reads it. ``why`` has a place
    for its name."""
    for name, value in given.items():
        require(value is None or value == [], why.format(name), remedy)


def _usual_group(to: str, weights: str, bits: float | None) -> int:
    """Weights that share a scale where nothing is said: what the layout has at all, else what lost least for
    its size (docs/quantisation.md). MLX has an offset beside each scale, so smaller groups cost it twice as
    much; a budget begins at larger ones, and comes to smaller ones by itself."""
    if to == "marlin":
        return 128
    large = weights == "ternary" or to == "mlx" or (bits is not None and to != "gguf")
    return 64 if large else 32


@contextmanager
def _told_when_interrupted(target: Path) -> Iterator[None]:
    from minicpm4.quantize.work import part_of

    try:
        yield
    except KeyboardInterrupt:
        part = part_of(target)
        kept = (
            f"what is done is kept in {part}, the same command goes on"
            if part.is_dir()
            else "nothing is kept"
        )
        print(f"interrupted: {kept}", file=sys.stderr)
        raise


def _calibrated(options: QuantizeOptions | None, texts: Calibration) -> str | list[str] | None:
    """What a report says of it: files, the model's own texts, or nothing."""
    if options is None or not options.calibrated:
        return None
    return [str(file) for file in texts.files] or "own"


def _overrides(given: Sequence[str]) -> dict[str, str]:
    """Formats by pattern; of one that is given twice the last, in its place."""
    found: dict[str, str] = {}
    for text in given:
        pattern, equals, kind = text.rpartition("=")
        require(
            bool(equals and pattern),
            f"--override {text!r} is not PATTERN=FORMAT",
            "such as 'down_proj=int8-g64'",
        )
        found.pop(pattern, None)
        found[pattern] = kind
    return found
