"""The contest as Markdown."""

from __future__ import annotations

from typing import Any

from .quiet import is_loud


def markdown(run: dict[str, Any]) -> str:
    """One table a model, from what cpu_peers.py wrote as JSON."""
    machine, threads = run["machine"], run["threads"]
    parts = [
        f"# CPU peers: {machine['cpu']}, {threads} threads, {run['date'][:10]}",
        "",
        f"Commit {run['commit']}; {machine['system']}. {_quiet(run['other_load'])}",
        "Tokens per second, medians; ± is half the distance between fastest and slowest repeat. "
        "~: worked out from shallower points of the same peer. Ratios are to the best peer.",
        "",
    ]
    for model in run["models"]:
        parts += _model(model)
    return "\n".join(parts)


def _quiet(load: dict[str, float] | None) -> str:
    if load is None:
        return "Whether the machine was quiet is unknown."
    used, stolen = load["others"], load["stolen"]
    text = f"Meanwhile other processes used {used:.2f} cores, {stolen:.2f} were withheld by the host."
    if is_loud(load):
        text += " **Too loud to quote: peers that spin at barriers lose far more than their share.**"
    return text


def _model(model: dict[str, Any]) -> list[str]:
    names = [column["name"] for column in model["columns"]]
    ours = [column["name"] for column in model["columns"] if column["ours"]]
    limits = model["limits"]
    parts = [f"## {model['name']}", ""]
    abouts = dict.fromkeys(_about(column["about"]) for column in model["columns"])
    for about in abouts:
        who = [column["name"] for column in model["columns"] if _about(column["about"]) == about]
        parts.append(f"- {', '.join(who)}: {about}")
    parts += [f"- {name} left out: {why}" for name, why in model["left_out"].items()]
    parts += [
        f"- Limits in this run: memory {limits['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s read, float32 "
        f"products {limits['float32_ops_per_s'] / 1e9:,.0f} GFLOP/s. The last column says how much of that "
        "our dense figure is: bandwidth for decode; float32 products for prefill, which narrower products "
        "(bf16, 8 bits) can exceed.",
        "",
        "| " + " | ".join(["point", *names, *(f"{name} / best peer" for name in ours), "of limit"]) + " |",
        "| --- |" + " ---: |" * (len(names) + len(ours) + 1),
    ]
    parts += [_row(entry, names, ours) for entry in model["points"]]
    return [*parts, ""]


def _row(entry: dict[str, Any], names: list[str], ours: list[str]) -> str:
    rates = entry["rates"]
    cells = [entry["label"], *(_cell(rates[name]) for name in names)]
    peers = [rates[name].get("tokens_per_s", 0.0) for name in names if name not in ours]
    best = max(peers, default=0.0)
    for name in ours:
        rate = rates[name].get("tokens_per_s")
        cells.append(f"**{rate / best:.2f}x**" if rate and best else "–")
    share = entry.get("limit_share")
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
