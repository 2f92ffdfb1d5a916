"""Which sampling settings make sense where a checkpoint suggests none.

Ten prompts with answers that a pattern can check go to each model under each preset: what llama.cpp, Ollama
and transformers do when nobody says anything, plain sampling, and candidates. Told are the share of right
answers, repeated runs of four tokens (a sign of loops), and the model's own mean log probability of its words
(a sign of nonsense, when low). Answers are written beside the figures: read them.

    .venv/bin/python benchmarks/sampling_defaults.py MODEL... [--seeds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from commits import heading

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.params import OFF
from minicpm4.files import json_text, write_file

PROMPTS: dict[str, str] = {
    "Hello, who are you?": r"assistant|AI\b|help|model",
    "What is the capital of France?": r"Paris",
    "What is 7 plus 5?": r"\b12\b|twelve",
    "Name three colours.": r"(?:(?:red|blue|green|yellow|orange|purple|black|white)\b.*?){3}",
    "Translate 'good morning' into French.": r"bonjour",
    "Write one sentence about the sea.": r"\b(?:sea|ocean|waves?|water)\b",
    "What is the opposite of hot?": r"cold|cool",
    "Write a Python function that adds two numbers.": r"def \w+\(.*return|lambda",
    "How many days are in a week?": r"\b7\b|seven",
    "Explain in one sentence why the sky is blue.": r"scatter|wavelength",
}
# What is left out of a preset is off: that is what the others' own defaults come to.
PRESETS: dict[str, dict[str, Any]] = {
    "temperature 1": {},
    "llama.cpp": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "Ollama": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
    "transformers": {"temperature": 0.0},
    "MiniCPM4's card": {"temperature": 0.7, "top_p": 0.7},
    "cooler": {"temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "cooler, less repetition": {"temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
                                "repetition_penalty": 1.05},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {
        Path(name).name.removesuffix(".gguf"): run(name, arguments.seeds, arguments.max_tokens)
        for name in arguments.models
    }
    for model, presets in found.items():
        print(f"\n{model}\n{'preset':26}{'right':>8}{'repeated':>10}{'log p':>8}")
        for preset, row in presets.items():
            print(f"{preset:26}{row['right']:>8.0%}{row['repeated']:>10.1%}{row['logprob']:>8.2f}")
    if arguments.json:
        report = {
            **heading(),
            "seeds": arguments.seeds,
            "max_tokens": arguments.max_tokens,
            "presets": PRESETS,
            "models": found,
        }
        write_file(arguments.json, json_text(report, indent=1, ascii_only=False) + "\n")


def run(name: str, seeds: int, max_tokens: int) -> dict[str, dict[str, Any]]:
    """Figures and answers of one model, by preset."""
    with LLM(name, context=1024, max_batch=8, seed=0) as llm:
        return {preset: measure(llm, values, seeds, max_tokens) for preset, values in PRESETS.items()}


def measure(llm: LLM, values: Mapping[str, Any], seeds: int, max_tokens: int) -> dict[str, Any]:
    """One preset: every prompt with every seed. Log probabilities are the model's own, before any filter."""
    settings = {**OFF, **values}
    right, repeated, logprobs, answers = [], [], [], {}
    for prompt, pattern in PROMPTS.items():
        # Greedy decoding says the same every time.
        count = 1 if settings["temperature"] == 0 else seeds
        out = llm.chat(
            [{"role": "user", "content": prompt}],
            SamplingParams(max_tokens=max_tokens, n=count, seed=1, logprobs=0, **settings),
        )
        for sample in out.outputs:
            right.append(bool(re.search(pattern, sample.text, re.IGNORECASE | re.DOTALL)))
            repeated.append(share_repeated(sample.token_ids))
            logprobs += [entry.logprob for entry in sample.logprobs or ()]
        answers[prompt] = [sample.text for sample in out.outputs]
    return {
        "right": mean(right),
        "repeated": mean(repeated),
        "logprob": mean(logprobs),
        "answers": answers,
    }


def share_repeated(ids: list[int], n: int = 4) -> float:
    """Runs of ``n`` tokens that have occurred before, of all."""
    runs = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


if __name__ == "__main__":
    main()
