"""What ``minicpm4 convert`` prints of what it did."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm4.cli.terminal import print_facts, show, table
from minicpm4.config.strict import counted
from minicpm4.machine import human

if TYPE_CHECKING:
    from minicpm4.evals.conversion import Conversion
    from minicpm4.evals.fidelity import Fidelity
    from minicpm4.quantize.gguf_export import InType

__all__ = ["print_conversion"]

WORST = 5  # matrices shown


def print_conversion(target: Path, done: Conversion, found: Fidelity | None) -> None:
    """Print the worst matrices, notes, and what was written to ``target``; ``found``: how it compares."""
    from minicpm4.quantize.proof import MOST_APART, TOKENS

    errors = sorted(
        (row for row in done.rows if row.error is not None and ".layers." in row.name),
        key=lambda row: -(row.error or 0.0),
    )
    if errors:
        what = "output error" if done.tokens else "error of values"
        shown = table("worst matrices", "format", "how", what, left=3)
        for row in errors[:WORST]:
            shown.add_row(row.name, row.format, row.how, f"{math.sqrt(row.error or 0.0):.1%}")
        show(shown)
        print()
    _print_types(done.types)
    for note in done.notes:
        print(note, file=sys.stderr)
    _say_rounded([row.name for row in done.rows if row.how.startswith("too few")])
    facts = [
        ("written to", str(target)),
        (
            "size",
            f"{human(done.written.nbytes)} ({human(done.source_nbytes)} before), "
            f"{done.written.bits:.2f} bits a weight",
        ),
        *_chosen(done),
        *_ends(done),
        *_smoothed(done),
        *_stored(done),
        (
            "calibrated on",
            f"{counted(done.texts, 'text')}, {done.tokens:,} tokens" if done.tokens else "nothing",
        ),
        ("read again", _read_again(done)),
        (
            "computed with it",
            f"{TOKENS} tokens, logits {done.apart:.1g} of the largest apart ({MOST_APART:g} at most)",
        ),
    ]
    if found is not None:
        change = found.nll_change / found.nll_before if found.nll_before else 0.0
        interval = ""
        if found.nll_interval is not None and found.nll_before:
            interval = f" +- {found.nll_interval / found.nll_before:.2%}"
        margins = (
            f", half of them by a margin below {found.flip_margin:.2f}, nine in ten below "
            f"{found.flip_margin_high:.2f}"
        )
        facts += [
            ("compared on", f"{counted(len(done.tests), 'window')} of {len(done.tests[0]):,} tokens"),
            ("loss a token", f"{found.nll_before:.4f} -> {found.nll:.4f} ({change:+.2%}{interval})"),
            ("KL divergence", f"{found.kl_mean:.4f}, 99.9% of tokens below {found.kl_high:.2f}"),
            (
                "best token another",
                f"{found.flips:,.0f} of 10,000" + (margins if found.flips else ""),
            ),
        ]
    print_facts("converted", facts)


def _read_again(done: Conversion) -> str:
    """What the values that were read again are."""
    if not done.rows:
        return "every value as it was written"
    rounded = {f"{row.name}.weight" for row in done.rows}
    more = sum(one.error > 0 and one.name in rounded for one in done.types)
    return "every value as it was rounded" + (f", {_matrices(more)} once more, to their type" if more else "")


def _chosen(done: Conversion) -> list[tuple[str, str]]:
    """How many matrices a budget of bits has put into each format."""
    if done.options is None or done.options.bits is None:
        return []
    formats = Counter(str(spec) if spec else "floats or as they were" for spec in done.formats.values())
    return [
        ("formats", ", ".join(f"{_matrices(count)} in {name}" for name, count in sorted(formats.items())))
    ]


def _ends(done: Conversion) -> list[tuple[str, str]]:
    """Embeddings and a head that were rounded: no text tells what they give, so how far their values are."""
    return [
        (row.name.removeprefix("model."), f"{row.format}, values {math.sqrt(row.error):.1%} apart")
        for row in done.rows
        if row.error and ".layers." not in row.name
    ]


def _smoothed(done: Conversion) -> list[tuple[str, str]]:
    """Of how many matrices smoothing has made the error smaller, where GPTQ was asked to try."""
    if done.options is None or not (done.options.gptq and done.options.smoothed):
        return []
    layers = [row for row in done.rows if ".layers." in row.name]
    count = sum(row.how == done.options.method for row in layers)
    return [("smoothed", f"{count} of {_matrices(len(layers))}, where it helps GPTQ")]


def _stored(done: Conversion) -> list[tuple[str, str]]:
    """The prefix whose keys and values are stored."""
    if done.options is None or not done.options.stored_prefix:
        return []
    count = counted(len(done.options.stored_prefix), "token")
    begin = [what for what, there in (("texts of calibration", done.texts), ("--test", done.tests)) if there]
    return [("stored prefix", count + (f", with which {' and '.join(begin)} begin" if begin else ""))]


def _print_types(types: Sequence[InType]) -> None:
    """How many matrices are in each type, and how far the worst of them is from what it was."""
    if not types:
        return
    shown = table("type", "matrices", "farthest from what it was", left=1)
    for name in dict.fromkeys(row.type for row in types):
        of_it = [row for row in types if row.type == name]
        worst = max(of_it, key=lambda row: row.error)
        far = f"{worst.error:.2%} ({worst.name})" if worst.error else "equal"
        shown.add_row(name, str(len(of_it)), far)
    show(shown)
    print()


def _matrices(count: int) -> str:
    return counted(count, "matrix", "matrices")


def _say_rounded(names: Sequence[str]) -> None:
    if names:
        print(
            f"too few tokens reached {_matrices(len(names))}, rounded to nearest: the first is {names[0]}",
            file=sys.stderr,
        )
