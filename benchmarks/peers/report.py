"""A run as Markdown."""

from __future__ import annotations

from typing import Any

from . import goals
from .quiet import is_loud

LIMITS = {  # of the JSON: what it is called, what to divide by, in which unit
    "bandwidth_bytes_per_s": ("reads", 1e9, "GB/s"),
    "float32_ops_per_s": ("float32 products", 1e9, "GFLOP/s"),
    "int16_ops_per_s": ("16-bit integer products", 1e9, "GOP/s"),
    "int8_ops_per_s": ("8-bit integer products", 1e9, "GOP/s"),
    "tile_bf16_ops_per_s": ("bf16 products of tiles", 1e9, "GFLOP/s"),
    "tile_int8_ops_per_s": ("8-bit products of tiles", 1e9, "GOP/s"),
}
PRODUCTS = (
    "tile_bf16_ops_per_s",
    "int16_ops_per_s",
    "float32_ops_per_s",
)  # the fastest that prefill uses, if known


def products_limit(limits: dict[str, float]) -> tuple[str, float]:
    """What prefill is held against, by name, and how much of it there is in operations a second."""
    key = next(key for key in PRODUCTS if limits.get(key))
    return LIMITS[key][0], limits[key]


def markdown(run: dict[str, Any]) -> str:
    """The goals, then a table for each part, from what cpu_peers.py wrote as JSON."""
    machine, threads = run["machine"], run["threads"]
    parts = [
        f"# CPU peers: {machine['cpu']}, {threads} threads, {run['date'][:10]}",
        "",
        f"{machine['system']}. Tokens per second, medians; ± is half the distance between fastest and "
        "slowest repeat. ~: worked out from shallower points of the same column. Ratios are to the best "
        "peer.",
        "",
        "## Goals",
        "",
        *goals.table(run),
        "",
    ]
    for model in run["models"]:
        parts += _part(model)
    return "\n".join(parts)


def limits_text(limits: dict[str, float]) -> str:
    """``reads 52 GB/s, float32 products 429 GFLOP/s``."""
    found = [
        f"{name} {limits[key] / by:,.0f} {unit}"
        for key, (name, by, unit) in LIMITS.items()
        if limits.get(key)
    ]
    return ", ".join(found)


def _quiet(load: dict[str, float] | None) -> str:
    if load is None:
        return "Whether the machine was quiet is unknown."
    used, stolen = load["others"], load["stolen"]
    text = f"Meanwhile other processes used {used:.2f} cores, {stolen:.2f} were withheld by the host."
    if is_loud(load):
        text += " **Too loud to quote: peers that spin at barriers lose far more than their share.**"
    return text


def _part(model: dict[str, Any]) -> list[str]:
    names = [column["name"] for column in model["columns"]]
    ours = [column["name"] for column in model["columns"] if column["ours"]]
    peers = [name for name in names if name not in ours]
    parts = [f"## {model['name']}", ""]
    parts += [f"{model['date'][:16]}, commit {model['commit']}. {_quiet(model['other_load'])}", ""]
    abouts = dict.fromkeys(_about(column["about"]) for column in model["columns"])
    for about in abouts:
        who = [column["name"] for column in model["columns"] if _about(column["about"]) == about]
        parts.append(f"- {', '.join(who)}: {about}")
    parts += [f"- {name} left out: {why}" for name, why in model["left_out"].items()]
    limit, _ = products_limit(model["limits"])
    parts += [
        f"- Limits in this run: {limits_text(model['limits'])}. The last columns say how much of that ours "
        f"is: of reads for decode, of {limit} for prefill.",
        "",
        "| "
        + " | ".join(
            [
                "point",
                *names,
                *(f"{name} / best peer" for name in ours if peers),
                *(f"{name}, of limit" for name in ours),
            ]
        )
        + " |",
        "| --- |" + " ---: |" * (len(names) + len(ours) * (2 if peers else 1)),
    ]
    parts += [_row(entry, names, ours, peers) for entry in model["points"]]
    return [*parts, ""]


def _row(entry: dict[str, Any], names: list[str], ours: list[str], peers: list[str]) -> str:
    rates = entry["rates"]
    cells = [entry["label"], *(_cell(rates[name]) for name in names)]
    best = max((rates[name].get("tokens_per_s", 0.0) for name in peers), default=0.0)
    for name in ours if peers else ():
        rate = rates[name].get("tokens_per_s")
        cells.append(f"**{rate / best:.2f}x**" if rate and best else "–")
    for name in ours:
        share = rates[name].get("limit_share")
        cells.append(f"{share:.0%}" if share is not None else "–")
    return "| " + " | ".join(cells) + " |"


def _cell(rate: dict[str, Any]) -> str:
    if "tokens_per_s" not in rate:
        return "–"
    value = rate["tokens_per_s"]
    text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    if rate["estimated"]:
        return "~" + text
    return text + (f" ±{rate['spread'] / 2:.0%}" if rate["spread"] else "")


def _about(about: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in about.items()).replace("|", ",").strip()
