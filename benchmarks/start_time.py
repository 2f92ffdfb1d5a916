"""How long ``minicpm4 generate`` takes from the command to its first text, and where the time goes.

Every repeat is a process of its own, started as a user would: imports, files, tokenizer, weights, cache and
the prompt are all inside. The breakdown comes from further processes whose stages are timed from within;
imports that a stage causes belong to it. The first start is not counted: after it, files are in the
system's cache. Beside wall time stands the main thread's own processor time, which tells waiting from work
on a machine that does other things too.

    .venv/bin/python benchmarks/start_time.py [MODEL] [--repeats 5] [--tokens 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

# Stage -> the function that it is, in the order in which they run. A stage inside another is taken from it.
STAGES = {
    "file: header": ("minicpm4.model.source", "open_checkpoint"),
    "tokenizer and template": ("minicpm4.model.source", "ModelText"),
    "inspect, the rest": ("minicpm4.engine.llm", "inspect"),
    "weights": ("minicpm4.engine.load", "load_weights"),
    "page pool": ("minicpm4.engine.executors", "KVPool"),
    "build, the rest": ("minicpm4.engine.load", "Inspection.build"),
    "prompt to tokens": ("minicpm4.engine.llm", "LLM.chat_ids"),
    "prefill and sampling": ("minicpm4.engine.engine", "Engine.step"),
}
LAUNCH = "from minicpm4.__main__ import main; main()"


def main() -> None:
    arguments = parse()
    if arguments.child:
        child(arguments)
        return
    first_text(arguments)  # compiles modules, reads files into the cache
    whole = [first_text(arguments) for _ in range(arguments.repeats)]
    parts = [stages(arguments) for _ in range(arguments.repeats)]
    # Not above: the children measure what imports take.
    from minicpm4.files import write_json
    from minicpm4.machine import cpu_name

    report = {
        "cpu": cpu_name(),
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "model": arguments.model,
        "prompt tokens": parts[0]["tokens"],
        "first text, s": round(median(wall for wall, _ in whole), 3),
        "first text, least s": round(min(wall for wall, _ in whole), 3),
        "processor time, s": round(median(cpu for _, cpu in whole), 3),
        "stages, ms of wall and of processor time": {
            name: [round(1000 * median(one["stages"][name][clock] for one in parts), 1) for clock in (0, 1)]
            for name in parts[0]["stages"]
        },
    }
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for stage, figure in value.items():
                print(f"    {stage:<28}{figure[0]:>8.1f}{figure[1]:>8.1f}")
        else:
            print(f"{name}: {value}")
    if arguments.json:
        write_json(Path(arguments.json), report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time from the command to the first text.")
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100, help="words of the prompt, about a token each")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(arguments: argparse.Namespace) -> list[str]:
    prompt = ("please tell me about the river " * arguments.tokens).split()[: arguments.tokens]
    return [
        "generate",
        "--model",
        arguments.model,
        "--prompt",
        " ".join(prompt),
        "-n",
        "1",
        "-t",
        "0",
        "--json",
    ]


def first_text(arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds from starting the process to its first output, and the processor time it took in all."""
    before, began = os.times(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *command(arguments)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"generate ended with {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu


def stages(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of one process: seconds of each stage, wall and processor time, and "tokens" of the prompt."""
    options = [arguments.model, "--tokens", str(arguments.tokens), "--child"]
    result = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def child(arguments: argparse.Namespace) -> None:
    """Run the command with its stages timed; print them as JSON after its output."""
    before = clocks()
    from minicpm4.cli import run

    seconds = {"command line: imports": since(before)}
    before = clocks()
    import numpy  # noqa: F401

    seconds["numpy: import"] = since(before)
    before = clocks()
    import_module("minicpm4.engine.llm")
    seconds["engine: imports"] = since(before)
    seconds |= dict.fromkeys(STAGES, (0.0, 0.0))
    inner: list[Clocks] = [(0.0, 0.0)]  # of each open stage: what the stages within it took
    tokens: list[int] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before = clocks()
            inner.append((0.0, 0.0))
            result = function(*args, **kwargs)
            took = since(before)
            seconds[name] = plus(seconds[name], took, inner.pop())
            inner[-1] = plus(inner[-1], took)
            if name == "prompt to tokens":
                tokens.append(len(result))
            return result

        return wrapper

    for name, (module, path) in STAGES.items():
        owner: Any = import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, timed(name, getattr(owner, last)))
    before = clocks()
    run(command(arguments))
    seconds["everything else"] = plus((0.0, 0.0), since(before), inner[0])
    print(json.dumps({"stages": seconds, "tokens": tokens[0]}))


Clocks = tuple[float, float]  # seconds of wall time, and of the main thread's processor time


def clocks() -> Clocks:
    return time.perf_counter(), time.thread_time()


def since(before: Clocks) -> Clocks:
    now = clocks()
    return now[0] - before[0], now[1] - before[1]


def plus(total: Clocks, more: Clocks, less: Clocks = (0.0, 0.0)) -> Clocks:
    return total[0] + more[0] - less[0], total[1] + more[1] - less[1]


if __name__ == "__main__":
    main()
