"""Drafting beside llama.cpp's: tokens a second of the same prompts, the same file, in turns.

    .venv/bin/python benchmarks/draft_peers.py --llama-server PATH [--only smollm2|qwen] [--minutes 10]

Prompts and drafters are speculation.py's, at temperature 0. llama-server runs once for each of its ways to
draft (from a smaller model where we have one, and from repeats, with long and short keys), and of these the
fastest for a kind of prompt stands in the table. All stay loaded; only one computes at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from serving import free_port, started
from speculation import HERE, PARTS, Part, drafting_of, where

from minicpm4 import LLM, zoo
from minicpm4.evals.speculation import PLAIN, Case, answers, cases
from minicpm4.files import json_text, write_file
from minicpm4.machine import default_threads

CONTEXT = 4096
REPEATS = {
    "ngram-simple": (),
    "ngram-simple 4/16": ("--spec-ngram-simple-size-n", "4", "--spec-ngram-simple-size-m", "16"),
    "ngram-mod": (),
    "ngram-map-k 4/16": ("--spec-ngram-map-k-size-n", "4", "--spec-ngram-map-k-size-m", "16"),
    "ngram-cache": (),
}
"""llama.cpp's ways to draft from repeats (the first word is the --spec-type), and their flags."""
Run = Callable[[Case, int], float]


def ours(part: Part, llm: LLM) -> dict[str, Run]:
    """Tokens a second of decoding, by drafter."""

    def run(drafting: Any) -> Run:
        def rate(case: Case, tokens: int) -> float:
            found = [output.metrics for output in answers(llm, drafting, case, tokens)]
            return sum(one.new_tokens - 1 for one in found) / sum(one.decode_s for one in found)

        return rate

    drafters = {name: drafting_of(llm, name) for name in part.drafters if ":" not in name}
    return {PLAIN: run(None), **{name: run(drafting) for name, drafting in drafters.items()}}


def theirs(url: str) -> Run:
    """The same of a llama-server."""

    def rate(case: Case, tokens: int) -> float:
        made = seconds = 0.0
        for ids in case.prompts:
            body = {"prompt": list(ids), "temperature": 0.0, "ignore_eos": True, "cache_prompt": True}
            for count in (1, tokens):  # the prompt is read before
                reply = httpx.post(f"{url}/completion", json=body | {"n_predict": count}, timeout=600)
                reply.raise_for_status()
            timings = reply.json()["timings"]
            made += timings["predicted_n"] - 1
            seconds += timings["predicted_ms"] / 1000
        return made / seconds

    return rate


def commands(part: Part, program: str) -> dict[str, list[str]]:
    """llama-server with each of its ways to draft."""
    threads = str(default_threads())
    usual = [
        program,
        "-m",
        str(zoo.resolve(part.model)),
        "-c",
        str(CONTEXT),
        "-np",
        "1",
        "-t",
        threads,
        "--no-webui",
    ]
    found = {PLAIN: usual}
    if part.draft_model:
        for count in ("3", "8"):
            flags = ["-md", str(zoo.resolve(part.draft_model)), "--spec-type", "draft-simple"]
            found[f"model, {count}"] = [*usual, *flags, "--spec-draft-n-max", count, "-td", threads]
    for name, flags in REPEATS.items():
        found[name] = [*usual, "--spec-type", name.split()[0], *flags]
    return found


def measure(
    every: Sequence[Case], runs: dict[tuple[str, str], Run], tokens: int, seconds: float
) -> tuple[dict[tuple[str, str, str], list[float]], int]:
    """Rates by kind, side and way; and of how many whole rounds."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    began, done = time.monotonic(), 0
    while not done or time.monotonic() - began < seconds * done / (done + 1):
        for i, case in enumerate(every):
            for (side, way), run in runs.items() if done % 2 else reversed(runs.items()):
                found[case.kind, side, way].append(run(case, tokens))
            print(f"  round {done + 1}: {i + 1} of {len(every)} kinds", flush=True)
        done += 1
    return found, done


def rows(found: dict[tuple[str, str, str], list[float]]) -> list[dict[str, Any]]:
    """By kind: what both do without drafts, and the best of each with them."""
    made = []
    for kind in dict.fromkeys(kind for kind, _, _ in found):
        row: dict[str, Any] = {"kind": kind}
        for side in ("minicpm4", "llama.cpp"):
            rates = {
                way: statistics.median(all_) for (k, s, way), all_ in found.items() if (k, s) == (kind, side)
            }
            plain = rates.pop(PLAIN)
            best = max(rates, key=lambda way: rates[way])
            row[side] = {"off": plain, "best": best, "rate": rates[best], "rates": rates}
        made.append(row)
    return made


def table(made: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| tokens/s | minicpm4, off | llama.cpp, off | minicpm4, best | llama.cpp, best | best / best |",
        "| --- | ---: | ---: | --- | --- | ---: |",
    ]
    for row in made:
        one, other = row["minicpm4"], row["llama.cpp"]
        lines.append(
            f"| {row['kind']} | {one['off']:.1f} | {other['off']:.1f} | {one['rate']:.1f} ({one['best']}) "
            f"| {other['rate']:.1f} ({other['best']}) | {one['rate'] / other['rate']:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def run_part(name: str, program: str, seconds: float, write: bool) -> None:
    part = PARTS[name]
    draft = f"model:{part.draft_model}" if part.draft_model else "suffix"
    with contextlib.ExitStack() as stack:
        llm = stack.enter_context(LLM(part.model, context=CONTEXT, max_batch=1, draft=draft))
        runs = {("minicpm4", way): run for way, run in ours(part, llm).items()}
        for way, command in commands(part, program).items():
            port = free_port()
            server = started(way, [*command, "--port", str(port)], port, "/health")
            runs["llama.cpp", way] = theirs(stack.enter_context(server).url)
        kinds = [kind for kind in part.kinds if kind != "long"]
        found, done = measure(cases(llm, kinds, [0.0]), runs, part.tokens, seconds)
        kernels = llm.description
    made, here = rows(found), where()
    said = f"{part.model}, {done} rounds, {here['machine']}, {here['date']}"
    shown = f"{said}\n\n{table(made)}"
    print(shown)
    if write:
        all_rates = [{"kind": k, "side": s, "way": w, "rates": rates} for (k, s, w), rates in found.items()]
        figures = {
            "model": part.model,
            "draft_model": part.draft_model or None,
            "kernels": kernels,
            **here,
            "tokens": part.tokens,
            "rounds": done,
            "rows": made,
            "all": all_rates,
        }
        stem = f"draft_peers_{name}_{here['date']}"
        write_file(HERE / "results" / f"{stem}.json", json_text(figures, indent=1) + "\n")
        write_file(HERE / "results" / f"{stem}.md", shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each model; a round begun is ended")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    options = parser.parse_args()
    for name in PARTS:
        if options.only in (None, name):
            run_part(name, options.llama_server, 60 * options.minutes, options.write)


if __name__ == "__main__":
    main()
