"""What few bits cost, as benchmarks/quantisation.py has measured it: differences over the same windows, and
the table of docs/quantisation.md.

Differences and their intervals are worked out from each window's divergence, which results hold.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from minicpm4.evals.intervals import mean_with_interval
from minicpm4.quantize.options import METHODS

REFERENCE = "gptq"
STORED, TAKEN = " stored", " stored, then taken away"


def paired(rows: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By case and kind of text: its divergence less that of GPTQ with the same groups, or of a stored prefix
    less that of the same without, and half the width of the 95% interval over windows."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, row in rows.items():
        plain = rows.get(name.partition(STORED)[0])
        if STORED in name and plain is not None:
            found[name] = apart(row, plain)
            continue
        kind = name.partition(",")[2]
        other = rows.get(f"{name.split()[0]} {REFERENCE}" + (f",{kind}" if kind else ""))
        if other is None or other is row:
            continue
        found[name] = apart(row, other)
    return found


def apart(row: dict[str, Any], other: dict[str, Any]) -> dict[str, list[float]]:
    """By kind of text: divergence less that of ``other``, and half the width of the interval."""
    found = {}
    for kind, one in row["texts"].items():
        each = np.subtract(one["window_kl"], other["texts"][kind]["window_kl"])
        mean, half = mean_with_interval(each.tolist())
        found[kind] = [mean, half or 0.0]
    return found


def at_equal_size(rows: dict[str, Any]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By our own case, and by file of another tool that takes as much or up to 3% more: the divergence less
    that file's."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (name, row), (other, file) in product(rows.items(), rows.items()):
        if "tokens" in row and "tokens" not in file and 0.97 <= row["nbytes"] / file["nbytes"] <= 1.0:
            found.setdefault(name, {})[other] = apart(row, file)
    return found


def table(run: dict[str, Any]) -> list[str]:
    """All rows as Markdown: figures of both kinds of text. Groups in order of their size, of each the methods
    in theirs; files of other tools last."""
    rows = run["rows"]
    less = paired(rows)
    first = next(iter(rows.values()))["texts"]
    less_than = "GPTQ's of the same groups" + (
        "; of stored, that without" if any(STORED in name for name in rows) else ""
    )
    before = ", ".join(f"{one['nll_before']:.3f}" for one in first.values())
    lines = [
        f"{run['windows']} windows of {run['length']} tokens of each kind of text ({', '.join(first)}), "
        f"{run['samples']} texts to calibrate on; {run['cpu']}, {run['date'][:10]}.",
        "",
        f"| {run['model'].removesuffix('-q4_k_m')} | matrices, bits a weight | loss (original: {before}) "
        f"| KL divergence | best token another, of 10,000 | KL less {less_than}, paired |",
        "| --- " * 6 + "|",
    ]
    for name in sorted(rows, key=_place):
        row, texts = rows[name], rows[name]["texts"].values()
        apart_by = ", ".join(f"{mean:+.4f} ± {half:.4f}" for mean, half in less.get(name, {}).values())
        cells = [
            name.removeprefix("int4-") if name.startswith("int4-g") else name,
            f"{row['nbytes'] / 1e6:,.0f} MB, {row['bits']:.2f}",
            ", ".join(f"{one['nll']:.3f}" for one in texts),
            ", ".join(f"{one['kl_mean']:.4f}" for one in texts),
            ", ".join(f"{one['flips']:,.0f}" for one in texts),
            apart_by,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _place(name: str) -> tuple[int, int, str]:
    """Where a row stands."""
    group, _, rest = name.partition(" ")
    method, size = rest.partition(" ")[0].removesuffix(","), group.removeprefix("int4-g")
    if size.isdigit() and method in METHODS:
        return int(size), [*METHODS].index(method), name
    return 1 << 20, "at load" not in name, name
