"""How far are the log likelihoods of two runs of lm-evaluation-harness apart, item by item?

    .venv/bin/python benchmarks/harness_samples.py OUT_A OUT_B --json FILE [--float64 MODEL]

Folders are those of --output_path, of runs with --log_samples on the same tasks, in any order. With --float64
transformers reads those log likelihoods again in float64 that are furthest apart, which says whose they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commits import heading

from minicpm4.files import lines_of, write_json

FURTHEST = 6  # log likelihoods of a task that are read in float64
Place = tuple[int, int]  # document and choice


@dataclass(frozen=True)
class Sample:
    """What stands before a choice, the choice, and its log likelihood."""

    context: str
    choice: str
    found: float


Items = dict[Place, Sample]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two runs of lm-evaluation-harness item by item.")
    parser.add_argument("folders", type=Path, nargs=2)
    parser.add_argument("--note", default="", help="how the two ran")
    parser.add_argument("--float64", type=Path, metavar="MODEL", help="the folder that both have read")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    one, other = map(samples, arguments.folders)
    if one.keys() != other.keys() or not one:
        parser.error(f"the runs have the tasks {sorted(one)} and {sorted(other)}")
    tasks = {task: apart(one[task], other[task]) for task in one}
    if arguments.float64 is not None:
        exact = Exact(arguments.float64)
        for task, found in tasks.items():
            found["float64"] = judged(one[task], other[task], exact)
    report = {
        **heading(),
        "note": arguments.note,
        "items": sum(found["items"] for found in tasks.values()),
        "largest": max(found["largest"] for found in tasks.values()),
        "tasks": tasks,
    }
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        write_json(arguments.json, report)


def samples(folder: Path) -> dict[str, Items]:
    """By task: log likelihoods by item and choice."""
    found: dict[str, Items] = {}
    for file in sorted(folder.rglob("samples_*.jsonl")):
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        rows = [json.loads(line) for line in lines_of(file.read_text(encoding="utf-8")) if line]
        found[task] = {
            (row["doc_id"], choice): Sample(*asked(row, choice), float(pair[0]))
            for row in rows
            for choice, pair in enumerate(row["filtered_resps"])
        }
    return found


def asked(row: dict[str, Any], choice: int) -> tuple[str, str]:
    context, end = list(row["arguments"].values())[choice].values()
    return context, end


def apart(one: Items, other: Items) -> dict[str, Any]:
    """Of a task: items, log likelihoods, and how far those are apart in nats."""
    if one.keys() != other.keys():
        raise SystemExit("error: the runs asked other items")
    sizes = sorted(gap(one[key], other[key]) for key in one)
    return {
        "items": len({item for item, _ in one}),
        "log_likelihoods": len(sizes),
        "largest": sizes[-1],
        "median": sizes[len(sizes) // 2],
        "above_1e-3": sum(size > 1e-3 for size in sizes),
    }


def gap(one: Sample, other: Sample) -> float:
    return abs(one.found - other.found)


class Exact:
    """A model of transformers in float64."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokens = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def log_likelihood(self, sample: Sample) -> float:
        ids = self.tokens(sample.context + sample.choice)["input_ids"]
        first = len(self.tokens(sample.context)["input_ids"])
        with self.torch.no_grad():
            # Products are in float64; norms and softmax are in float32 whatever the dtype.
            logits = self.model(self.torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(first, len(ids)))


def judged(one: Items, other: Items, exact: Exact) -> dict[str, Any]:
    """How far each run is, at most, from float64 where they are furthest apart."""
    furthest = sorted(one, key=lambda key: -gap(one[key], other[key]))[:FURTHEST]
    truth = {key: exact.log_likelihood(one[key]) for key in furthest}
    return {
        "read": len(furthest),
        "largest": [max(abs(run[key].found - truth[key]) for key in furthest) for run in (one, other)],
    }


if __name__ == "__main__":
    main()
