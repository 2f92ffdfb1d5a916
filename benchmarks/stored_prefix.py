"""Would keys and values of the first tokens, kept from the original, help few bits (PrefixQuant)?

    .venv/bin/python benchmarks/stored_prefix.py [MODEL] --work FOLDER [--methods M,…] [--json FILE]

The first positions of a text carry activations far larger than all others. PrefixQuant (arXiv 2410.05265)
puts tokens in front of every text that take these upon themselves, and keeps their keys and values instead of
computing them. Here the first tokens of the model's own chat template go in front, and each method's weights
are read three ways, always beside the original with the same tokens before it:

plain      no tokens in front, neither when calibrating nor when reading
computed   the tokens in front, and what they leave in the cache computed with the rounded weights
stored     the same weights, and in the cache what the original's weights leave there

Methods with "p-" leave exactly these tokens out of their statistics. --work is that of quantisation.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from commits import commit
from moved_original import move, texts
from numpy.typing import NDArray
from quantisation import shown_name

from minicpm4.cli.terminal import progress_bar
from minicpm4.config import ModelConfig
from minicpm4.errors import Minicpm4Error
from minicpm4.evals.conversion import read_windows
from minicpm4.evals.fidelity import Fidelity, compare
from minicpm4.files import finite, write_json
from minicpm4.formats import Checkpoint
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.kernels.contract import KVLayer
from minicpm4.kernels.layer_weights import AttentionWeights
from minicpm4.kernels.registry import exact_table
from minicpm4.machine import cpu_name, total_cores
from minicpm4.model.source import open_model
from minicpm4.quantize.layer import from_packed, read_layer, read_tensor
from minicpm4.quantize.options import METHODS, QuantizeOptions
from minicpm4.quantize.pipeline import Rounded, quantize
from minicpm4.quantize.walk import Walk, as_floats

Floats = NDArray[np.float32]
Kept = list[list[tuple[Floats, Floats]]]  # keys and values of the first tokens, by layer and text


class Reading(Walk):
    """A walk that notes what the first ``count`` tokens leave in the cache, or puts there what is
    ``given``."""

    def __init__(self, *args: Any, count: int, given: Kept | None = None) -> None:
        super().__init__(*args)
        self._count, self._given, self._depth = count, given, 0
        self.kept: Kept = []

    def _attended(self, part: AttentionWeights, kv: KVLayer) -> list[Floats]:
        found, kept, n = [], [], self._count
        for i, (ids, x) in enumerate(zip(self._texts, self.x, strict=True)):
            step = self._step(ids)
            q = self._ops.qkv(x, part, kv, step)
            if self._given is not None:
                kv.keys[0, :, :, :n], kv.values[0, :, :n] = self._given[self._depth][i]
            kept.append((kv.keys[0, :, :, :n].copy(), kv.values[0, :, :n].copy()))
            found.append(np.array(self._ops.attention(q, kv, step)).reshape(len(ids), -1))
        self.kept.append(kept)
        self._depth += 1
        return found


class Read:
    """What a model says of texts after ``count`` tokens in front of each, as ``compare`` asks for it."""

    def __init__(self, states: Sequence[Floats], norm: Floats, head: Floats, eps: float, count: int) -> None:
        self._norm, self._head, self._eps = norm, head, eps
        self._states = iter([x[count:] for x in states])

    def logits(self, _: list[int]) -> Floats:
        """Of the next text."""
        x = next(self._states)
        x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + self._eps) * self._norm
        return x @ self._head.T


def ends(checkpoint: Checkpoint, config: ModelConfig) -> tuple[Floats, Floats, float]:
    """The last norm, the head with its scale, epsilon."""
    head = read_tensor(checkpoint, EMBED if config.tie_word_embeddings else HEAD)
    return read_tensor(checkpoint, "model.norm.weight"), head * config.logit_scale, config.rms_norm_eps


def go(walk: Reading, layers: Iterator[Any]) -> Reading:
    for index, layer in enumerate(layers):
        walk.advance(index, layer)
    return walk


def original(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[Any]:
    return (read_layer(checkpoint, config, i).weights() for i in range(config.num_hidden_layers))


def rounded(made: Rounded) -> Iterator[Any]:
    for index in range(made.config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        tensors = {name.removeprefix(prefix): one for name, one in made.layer(index).items()}
        yield from_packed(made.config, tensors).weights()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    files = texts(args.work / "texts")
    source = args.work / "original"
    if not source.exists():
        move(open_model(args.model), source, args.seed)
    opened = open_model(source)
    config, checkpoint, text = opened.config, opened.checkpoint, opened.text()
    front = text.tokenizer.encode(args.front, add_special_tokens=False)
    calibration = read_windows(text.tokenizer, [*files["calibration"].values()], args.samples, args.length)
    windows = [
        one
        for file in files["test"].values()
        for one in read_windows(text.tokenizer, [file], args.windows, args.length)
    ]
    embed, ops = as_floats(read_tensor(checkpoint, EMBED)), exact_table()
    norm, head, eps = ends(checkpoint, config)

    def walk(count: int, given: Kept | None = None) -> Reading:
        ids = [front[:count] + one for one in windows]
        return Reading(ops, config, embed, ids, count=count, given=given)

    def told(before: Reading, after: Reading, count: int) -> Fidelity:
        both = [Read(one.x, norm, head, eps, count) for one in (before, after)]
        return compare(both[0], both[1], windows)

    count = len(front)
    plain = go(walk(0), original(checkpoint, config))
    fronted = go(walk(count), original(checkpoint, config))
    rows: dict[str, Any] = {}
    nll = {"plain": told(plain, plain, 0).nll, "with the tokens": told(fronted, fronted, count).nll}
    for method in args.methods:
        for n in (0, count):
            skip = {"skip_first": n} if "p-" in method and n else {}
            options = QuantizeOptions(weights="int4", method=method, group=args.group, seed=args.seed, **skip)
            with progress_bar(f"{method}, {n} tokens in front", "layers") as progress:
                given = [front[:n] + one for one in calibration]
                key = {"of": f"{method} {args.group} {n} {args.samples} {args.length} {args.front}"}
                folder = args.work / f"prefix-{method}-{n}"
                made = quantize(checkpoint, config, options, given, ops, folder, key, progress)
            if not n:
                rows[f"{method} plain"] = told(plain, go(walk(0), rounded(made)), 0).as_dict()
                continue
            rows[f"{method} computed"] = told(fronted, go(walk(n), rounded(made)), n).as_dict()
            rows[f"{method} stored"] = told(fronted, go(walk(n, fronted.kept), rounded(made)), n).as_dict()
        for name in ("plain", "computed", "stored"):
            row = rows[f"{method} {name}"]
            print(f"{method:9} {name:9} loss {row['nll']:.4f}, KL {row['kl_mean']:.4f}", flush=True)
    return {
        "model": shown_name(args.model), "front": args.front, "tokens": front, "group": args.group,
        "samples": args.samples, "length": args.length, "windows": len(windows), "nll": nll, "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m-instruct")
    add("--work", type=Path, required=True, help="folder of texts, the moved original and what is done")
    add("--methods", type=lambda text: text.split(","), default=["gptq", "p-gptq", "s-gptq", "s-p-gptq"],
        help=", ".join(name for name in METHODS if "gptq" in name))  # fmt: skip
    add("--front", default="<|im_start|>system\nYou", help="the text in front")
    add("--group", type=int, default=32)
    add("--samples", type=int, default=32)
    add("--length", type=int, default=512)
    add("--windows", type=int, default=4, help="of each kind of text, to compare on")
    add("--seed", type=int, default=0)
    add("--json", type=Path)
    args = parser.parse_args()
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "cpus": total_cores(),
        **measure(args),
    }
    if args.json is not None:
        write_json(args.json, finite(report))


if __name__ == "__main__":
    try:
        main()
    except Minicpm4Error as error:
        raise SystemExit(f"error: {error}") from None
