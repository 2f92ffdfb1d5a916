"""How far are the log likelihoods of two runs of lm-evaluation-harness apart, item by item?

    .venv/bin/python benchmarks/harness_samples.py OUT_A OUT_B --json FILE

Folders are those of --output_path, of runs with --log_samples on the same tasks, in any order.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commits import commit

from minicpm4.files import write_json
from minicpm4.machine import cpu_name

Items = dict[tuple[int, int], float]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two runs of lm-evaluation-harness item by item.")
    parser.add_argument("folders", type=Path, nargs=2)
    parser.add_argument("--note", default="", help="how the two ran")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    one, other = map(samples, arguments.folders)
    if one.keys() != other.keys() or not one:
        parser.error(f"the runs have the tasks {sorted(one)} and {sorted(other)}")
    tasks = {task: apart(one[task], other[task]) for task in one}
    report = {
        "cpu": cpu_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
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
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[task] = {
            (row["doc_id"], choice): float(pair[0])
            for row in rows
            for choice, pair in enumerate(row["filtered_resps"])
        }
    return found


def apart(one: Items, other: Items) -> dict[str, Any]:
    """Of a task: items, log likelihoods, and how far those are apart in nats."""
    if one.keys() != other.keys():
        raise SystemExit("error: the runs asked other items")
    sizes = sorted(abs(one[key] - other[key]) for key in one)
    return {
        "items": len({item for item, _ in one}),
        "log_likelihoods": len(sizes),
        "largest": sizes[-1],
        "median": sizes[len(sizes) // 2],
        "above_1e-3": sum(size > 1e-3 for size in sizes),
    }


if __name__ == "__main__":
    main()
