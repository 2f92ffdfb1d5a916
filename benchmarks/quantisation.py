"""What few bits cost: a model made small by every method, read on the same texts as the original.

    .venv/bin/python benchmarks/quantisation.py tables [MODEL] --work FOLDER [--groups 32,64] [--json FILE]
    .venv/bin/python benchmarks/quantisation.py activations [MODEL] --work FOLDER [--json FILE]

tables        loss, divergence and changed best tokens of each way to round, and its differences from GPTQ's
              paired over the same windows; --bits: formats by matrix within budgets; --loaded: rounded at
              load; --also NAME=MODEL reads files that other tools made, with which those of ours that take
              as much are compared; --stored-prefix TEXT: all windows begin with TEXT, and each way is made
              as ever, with a stored prefix, and read without what is stored
activations   how large the activations at the first positions of a text are, beside those further on

A file with weights of few bits lies on a grid that any method finds again, so the original is moved off it
first: random factors (0.7 to 1.4) from norms into projections, from v into o, from up into down, which leave
what the model computes as it is. Texts to compare on are other documents than those to calibrate on, each of
two kinds: English (manuals) and Python (its library). An interrupted run goes on from what FOLDER holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from commits import heading
from moved_original import EXACT, check_moved, move, texts
from peers.quantised import STORED, TAKEN, at_equal_size, paired

from minicpm4 import LLM
from minicpm4.cli.terminal import progress_bar
from minicpm4.config import ModelConfig
from minicpm4.errors import Minicpm4Error
from minicpm4.evals.conversion import Calibration, convert, read_windows
from minicpm4.evals.fidelity import compare
from minicpm4.files import finite, write_json, writing_path
from minicpm4.formats.names import EMBED, expected_tensors
from minicpm4.formats.quant import QuantSpec, packed_nbytes
from minicpm4.kernels.registry import exact_isa, host_table
from minicpm4.machine import total_cores
from minicpm4.model.source import open_model
from minicpm4.model.stored_prefix import FILE
from minicpm4.model.weight_plan import plan_weights
from minicpm4.quantize.layer import read_layer, read_tensor
from minicpm4.quantize.options import METHODS, QuantizeOptions
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.stored import prefix_ids
from minicpm4.quantize.walk import STAGES, Walk, as_floats

KINDS = {"english": ["english"], "python": ["python"], "both": ["english", "python"], "own": []}
FIRST = 8  # positions that ``activations`` tells apart


def cases(args: argparse.Namespace, tied: bool) -> Iterator[tuple[str, QuantizeOptions, str]]:
    """What is made: its name, how, and the kind of text it is calibrated on."""
    choices = product(args.groups, args.methods, args.rotate, args.bits, args.calibration)
    for group, method, rotate, bits, kind in choices:
        if method == "rtn" and (bits is not None or kind != args.calibration[0]):
            continue  # it looks at no text
        embed = args.embed if bits is None else None
        options = QuantizeOptions(
            weights="int4",
            method=method,
            group=group,
            rotate=rotate,
            embed=embed,
            head=embed if rotate or not tied else None,
            bits=bits,
            seed=args.seed,
        )
        name = f"int4-g{group} {method}" + (" rotated" if rotate else "")
        name += "" if bits is None else f" to {bits:g} bits"
        yield (name if len(args.calibration) == 1 else f"{name}, {kind}"), options, kind


def ways(stored: str | None) -> Iterator[tuple[str, str | None]]:
    """What each case is made with: as ever, and with a stored prefix."""
    yield "", None
    if stored is not None:
        yield STORED, stored


def tables(args: argparse.Namespace) -> dict[str, Any]:
    """All cases, each kept in ``work`` when it is done."""
    files = texts(args.work / "texts")
    source = args.work / "original"
    if not source.exists():
        move(open_model(args.model), source, args.seed)
    opened = open_model(source)
    tokenizer, config, prefix = opened.text().tokenizer, opened.config, args.stored_prefix
    begin = () if prefix is None else prefix_ids(opened.text(), prefix, config.vocab_size)
    windows = {
        kind: read_windows(tokenizer, [file], args.windows, args.length, begin)
        for kind, file in files["test"].items()
    }
    notes = check_moved(args.model, source, windows["english"][0][:128])
    apart, off_grid = notes["logits_apart"], notes["off_grid"]
    if apart is None or not apart <= 1e-5 or (off_grid is not None and off_grid < 0.5):
        raise SystemExit(f"error: the original was not moved as it should be: {notes}")
    for kind in args.calibration:  # for tools that calibrate on the same (peers/gptqmodel_file.py)
        if from_files := [files["calibration"][one] for one in KINDS[kind]]:
            same = read_windows(tokenizer, from_files, args.samples, args.length)
            write_json(args.work / f"calibration-{kind}.json", same)
    done = args.work / "done.json"
    key = {"model": args.model, "windows": args.windows, "length": args.length, "samples": args.samples,
           "seed": args.seed, "embed": args.embed}  # fmt: skip
    key |= {} if prefix is None else {"stored_prefix": prefix, "prefix_ids": list(begin)}
    kept = json.loads(done.read_text(encoding="utf-8")) if done.exists() else {"key": key, "rows": {}}
    if kept["key"] != key:
        raise SystemExit(f"error: {args.work} holds results of other settings: {kept['key']}")
    with Remembered(str(source), args.length, args.work / "logits") as original:
        every = cases(args, config.tie_word_embeddings)
        for (case, options, kind), (more, stored) in product(every, ways(prefix)):
            name = case + more
            if name in kept["rows"]:
                continue
            calibration = Calibration(
                files=tuple(files["calibration"][one] for one in KINDS[kind]),
                samples=args.samples,
                length=args.length,
            )
            target, began = args.work / "made", time.monotonic()
            shutil.rmtree(target, ignore_errors=True)
            made = convert(str(source), target, options, "hf", calibration, progress_bar, stored=stored)
            row: dict[str, Any] = size(config, made.options or options) | {"tokens": made.tokens}
            if options.bits is not None:
                row["formats"] = dict(Counter(one.format for one in made.rows if ".layers." in one.name))
            row["seconds"] = round(time.monotonic() - began, 1)
            kept["rows"][name] = row | {"texts": read(original, str(target), windows)}
            print(line(name, kept["rows"][name]), flush=True)
            if stored is not None and options.calibrated:  # else it is the case without
                (target / FILE).unlink()
                kept["rows"][case + TAKEN] = row | {"texts": read(original, str(target), windows)}
                print(line(case + TAKEN, kept["rows"][case + TAKEN]), flush=True)
            write_json(done, finite(kept))
        add_others(args, original, windows, kept, done)
    rows = kept["rows"]
    named = {**key, "model": shown_name(args.model)}
    return {**named, **notes, "rows": rows, "paired": paired(rows), "equal_size": at_equal_size(rows)}


def add_others(
    args: argparse.Namespace,
    original: Remembered,
    windows: dict[str, list[list[int]]],
    kept: dict[str, Any],
    done: Path,
) -> None:
    """Add rows of the original as it is rounded at load, and of files that other tools made, to ``kept``,
    which is written to ``done`` after each."""
    source = args.work / "original"
    for weights in args.loaded:
        name = f"{weights} at load"
        if name not in kept["rows"]:
            row = loaded_size(source, weights)
            kept["rows"][name] = row | {"texts": read(original, str(source), windows, weights)}
            write_json(done, finite(kept))
            print(line(name, kept["rows"][name]), flush=True)
    for one in args.also:
        name, _, file = one.partition("=")
        kept["rows"][name] = file_size(file) | {"texts": read(original, file, windows)}
        write_json(done, finite(kept))


class Remembered:
    """The original, of which logits are kept in ``folder``: every case is compared with the same ones, and it
    is loaded only for what is not there yet."""

    def __init__(self, model: str, length: int, folder: Path) -> None:
        self._model, self._length, self._folder = model, length, folder
        self._llm: LLM | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def logits(self, ids: list[int]) -> np.ndarray:
        file = self._folder / f"{hashlib.sha256(repr((self._model, ids)).encode()).hexdigest()[:24]}.npy"
        if not file.exists():
            if self._llm is None:
                self._llm = LLM(self._model, context=self._length + 8, max_batch=1, **EXACT)
            found = self._llm.logits(ids)
            with writing_path(file) as new, new.open("wb") as out:
                np.save(out, found)
        return np.load(file)

    def release(self) -> None:
        """Let go of the model, not of what is kept."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def __enter__(self) -> Remembered:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def file_size(model: str) -> dict[str, float]:
    """The same of a model's files, by what its matrices take there: of compressed-tensors and the like the
    scales, too, which are tensors of their own."""
    opened = open_model(model)
    shapes = [one for one in expected_tensors(opened.config).values() if len(one) == 2]
    plain = {name for name, one in expected_tensors(opened.config).items() if len(one) == 1}
    nbytes = sum(one.nbytes for name, one in opened.checkpoint.tensors.items() if name not in plain)
    return {"nbytes": nbytes, "bits": 8 * nbytes / sum(rows * columns for rows, columns in shapes)}


def loaded_size(model: Path, weights: str) -> dict[str, float]:
    """Of matrices as they lie in memory when ``model`` is loaded with ``weights``."""
    opened = open_model(model)
    plan = plan_weights(opened.checkpoint, opened.config, weights)
    count = sum(one.shape[0] * one.shape[1] for one in plan)
    return {"nbytes": plan.nbytes, "bits": 8 * plan.nbytes / count, "tokens": 0}


def size(config: ModelConfig, options: QuantizeOptions) -> dict[str, float]:
    """Bytes of all matrices, scales included, and bits a weight; floats count 16 bits. A rotated model has a
    head of its own, which a tied one has not."""
    config, specs = (Rotation.config(config) if options.rotate else config), options.specs(config)
    shapes = {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
    nbytes = sum(
        packed_nbytes((rows, columns), specs[name] or QuantSpec(kind="f16"))
        for name, (rows, columns) in shapes.items()
    )
    return {"nbytes": nbytes, "bits": 8 * nbytes / sum(rows * columns for rows, columns in shapes.values())}


def read(
    original: Remembered, made: str, windows: dict[str, list[list[int]]], weights: str = "f32"
) -> dict[str, Any]:
    """By kind of text what a file that was made of ``original`` is like, with ``weights`` as it is loaded."""
    with LLM(
        made,
        context=max(len(one) for each in windows.values() for one in each) + 8,
        max_batch=1,
        **{**EXACT, "weights": weights, "isa": exact_isa(floats=weights == "f32")},
    ) as llm:
        return {kind: compare(original, llm, each).as_dict() for kind, each in windows.items()}


def line(name: str, row: dict[str, Any]) -> str:
    parts = [
        f"{kind}: loss {one['nll_before']:.3f} -> {one['nll']:.3f}, KL {one['kl_mean']:.4f} "
        f"(99.9%: {one['kl_high']:.2f}), flips {one['flips']:,.0f}"
        for kind, one in row["texts"].items()
    ]
    return f"{name:26} {row['nbytes'] / 1e6:,.1f} MB, {row['bits']:.2f} bits; " + "; ".join(parts)


def activations(args: argparse.Namespace) -> dict[str, Any]:
    """Of each layer and stage the root mean square of what reaches it, at the first positions and beyond:
    means over texts, nothing rounded."""
    opened = open_model(args.model)
    file = texts(args.work / "texts")["calibration"]["english"]
    ids = read_windows(opened.text().tokenizer, [file], args.windows, args.length)
    embed = as_floats(read_tensor(opened.checkpoint, EMBED))
    walk, layers = Walk(host_table(), opened.config, embed, ids), []
    for index in range(opened.config.num_hidden_layers):
        weights = read_layer(opened.checkpoint, opened.config, index).weights()
        found: dict[str, list[float]] = {}
        for names, stage in zip(STAGES, walk.stages(index, lambda kept=weights: kept), strict=True):
            sizes: list[np.ndarray] = []
            stage(lambda x, sizes=sizes: sizes.append(np.sqrt(np.square(x, dtype=np.float64).mean(axis=1))))
            mean = np.mean(sizes, axis=0)
            found[names[0]] = [*mean[:FIRST].tolist(), float(mean[FIRST:].mean())]
        layers.append(found)
        print(index, {name: [round(v, 3) for v in values] for name, values in found.items()}, flush=True)
    return {"model": shown_name(args.model), "positions": [*range(FIRST), f"{FIRST} on"], "layers": layers}


def shown_name(model: str) -> str:
    """A model's name as results have it: of a file or folder without where it is."""
    return Path(model).stem if Path(model).exists() else model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("tables", "activations"))
    add("model", nargs="?", default="smollm2-135m-instruct")
    add("--work", type=Path, required=True, help="folder of texts, the moved original and what is done")
    add("--methods", type=lambda text: text.split(","), default=list(METHODS))
    add("--groups", type=lambda text: [int(one) for one in text.split(",")], default=[64])
    add("--rotate", type=lambda text: [one == "yes" for one in text.split(",")], default=[False, True],
        help="no, yes or both: no,yes")  # fmt: skip
    add(
        "--calibration",
        type=lambda text: text.split(","),
        default=["both"],
        help=", ".join(KINDS),
    )
    add("--bits", type=lambda text: [None if one == "as-said" else float(one) for one in text.split(",")],
        default=[None], help="budgets in which formats are chosen by matrix; as-said: none")  # fmt: skip
    add("--embed", default="int8-g32", help="format of the embeddings")
    add("--samples", type=int, default=32)
    add("--length", type=int, default=512)
    add("--windows", type=int, default=9, help="of each kind of text, to compare on")
    add("--seed", type=int, default=0)
    add("--loaded", type=lambda text: text.split(","), default=[], metavar="WEIGHTS",
        help="choices of --weights, rounded when the original is loaded")  # fmt: skip
    add("--also", action="append", default=[], metavar="NAME=MODEL", help="a file that another tool made")
    add("--stored-prefix", metavar="TEXT", help="with which all windows begin; auto: as chats do")
    add("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    report: dict[str, Any] = {
        **heading(),
        "cpus": total_cores(),
    }
    report |= {"tables": tables, "activations": activations}[args.part](args)
    files = texts(args.work / "texts")
    report["texts"] = {
        f"{use} {kind}": hashlib.sha256(file.read_bytes()).hexdigest()
        for use, kinds in files.items()
        for kind, file in kinds.items()
    }
    if args.json is not None:
        write_json(args.json, finite(report))


if __name__ == "__main__":
    try:
        main()
    except Minicpm4Error as error:
        raise SystemExit(f"error: {error}") from None
