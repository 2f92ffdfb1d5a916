"""What it costs that tokens without a choice are drawn one by one in users' own grammars.

The package asks for no forced tokens in grammars of strangers' (``_NO_FORCING`` in engine/grammar_text.py
says why). Each grammar below is answered with and without, by turns, from the same seeds at temperature 1;
told are seconds of an answer, and how many texts are the same: a fixed text may be drawn in other tokens than
its usual ones, and what is drawn behind it then differs.

    .venv/bin/python benchmarks/grammar_forcing.py [MODEL] [--rounds 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from commits import heading

from minicpm4 import LLM, SamplingParams
from minicpm4.engine import grammar_text
from minicpm4.files import json_text, write_file
from minicpm4.machine import watch_others

GRAMMARS = {
    "record (GBNF, long fixed parts)": r"""
root ::= "{\"customer_name\": \"" name "\", \"delivery_address\": \"" name "\", \"order_total\": " number "}"
name ::= [A-Z] [a-z]{2,12}
number ::= [1-9] [0-9]{0,3} "." [0-9]{2}
""",
    "form (Lark, half fixed)": r"""
start: "Name: " WORD "\nAge: " NUMBER "\nCity: " WORD "\nFavourite colour: " COLOUR "\n"
WORD: /[A-Z][a-z]{2,12}/
NUMBER: /[1-9][0-9]/
COLOUR: "red" | "green" | "blue"
""",
    "arithmetic (GBNF, few fixed)": r"""
root ::= term ([-+*/] term){2,8} "\n"
term ::= [1-9] [0-9]{0,3} | "(" term [-+*/] term ")"
""",
    "list (GBNF, few fixed)": r"""
root ::= item{5}
item ::= "- " [a-z ]{5,30} "\n"
""",
}
"""Grammars, from those whose answers are mostly fixed to those where nearly every token is a choice."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    llm, others = LLM(arguments.model, context=1024, max_batch=1), watch_others()
    rows = {name: measure(llm, grammar, arguments.rounds) for name, grammar in GRAMMARS.items()}
    print(f"{'':34}{'tokens':>7}{'one by one':>12}{'forced':>9}{'ratio (10 to 90%)':>22}{'same text':>11}")
    for name, row in rows.items():
        low, middle, high = row["ratio"]
        print(
            f"{name:34}{row['tokens']:>7}{row['one_by_one_s']:>10.3f} s{row['forced_s']:>7.3f} s"
            f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>22}{row['same']:>8}/{row['rounds']}"
        )
    if arguments.json:
        report = {
            **heading(),
            "other_processes_cores": others(),
            "model": Path(arguments.model).name,
            "grammars": rows,
        }
        write_file(arguments.json, json_text(report, indent=1, ascii_only=False) + "\n")


def measure(llm: LLM, grammar: str, rounds: int) -> dict[str, Any]:
    """Both ways in turns; the first pair, which compiles, is not counted."""
    times: dict[bool, list[float]] = {True: [], False: []}
    tokens, same = [], 0
    for seed in range(-1, rounds):
        texts = {}
        for forced in (seed % 2 == 0, seed % 2 == 1):
            seconds, out = answer(llm, grammar, seed + 1, forced)
            texts[forced] = out.text
            if seed >= 0:
                times[forced].append(seconds)
                tokens.append(len(out.token_ids))
        same += seed >= 0 and texts[True] == texts[False]
    one_by_one, forced_s = np.array(times[False]), np.array(times[True])
    ratio = np.percentile(one_by_one / forced_s, [10, 50, 90])
    return {
        "rounds": rounds,
        "tokens": int(np.median(tokens)),
        "one_by_one_s": round(float(np.median(one_by_one)), 4),
        "forced_s": round(float(np.median(forced_s)), 4),
        "ratio": [round(float(value), 3) for value in ratio],
        "same": same,
    }


def answer(llm: LLM, grammar: str, seed: int, forced: bool) -> tuple[float, Any]:
    """Seconds of an answer that is held to ``grammar``, and the answer."""
    kept, grammar_text._NO_FORCING = grammar_text._NO_FORCING, "" if forced else grammar_text._NO_FORCING
    # What was compiled is kept by the grammar's text: a blank line at its end keeps the two ways apart.
    params = SamplingParams(grammar=grammar + "\n" * forced, temperature=1.0, seed=seed, max_tokens=200)
    try:
        begun = time.perf_counter()
        out = llm.chat([{"role": "user", "content": "Invent one, please."}], params)
        return time.perf_counter() - begun, out
    finally:
        grammar_text._NO_FORCING = kept


if __name__ == "__main__":
    main()
