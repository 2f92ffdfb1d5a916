"""Keep what `minicpm4 eval code`, `math` or `tools` found as a result: with processor, day and commit,
without the answers themselves.

    python benchmarks/scores.py NAME FILE      # what --json or --output wrote

Writes results/scores_NAME_MODEL_CPU_DATE.json.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from commits import ROOT, heading

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import read_json, write_json

LIMIT = 64 << 20  # bytes of what eval wrote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="what was asked: humaneval")
    parser.add_argument("file", type=Path, help="what the command wrote")
    asked = parser.parse_args()
    found: dict[str, Any] = read_json(asked.file, LIMIT, ConfigError)
    require(
        "results" in found, f"{asked.file} holds no results", "give what eval wrote with --json or --output"
    )
    found.pop("answers", None)
    about = heading()
    words = (asked.name, str(found["model"]), about["cpu"], about["date"][:10])
    name = "_".join(re.sub(r"[^\w.-]+", "-", word.lower()).strip("-") for word in words)
    target = ROOT / "benchmarks" / "results" / f"scores_{name}.json"
    write_json(target, {**about, **found})
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
