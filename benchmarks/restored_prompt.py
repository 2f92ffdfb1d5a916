"""A prompt computed, beside the same one restored from ``cache_dir`` by another process.

Every figure is of a process of its own: seconds from the request to the first token, the model being loaded.
"no cache_dir" computes as well, so that what saving costs shows. Before the last column the files are dropped
from the system's cache, as after a restart of the machine.

    .venv/bin/python benchmarks/restored_prompt.py [MODEL] [--tokens 4000] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CASES = ("no cache_dir", "computed and saved", "restored", "restored, files not in memory")


def main() -> None:
    args = parse()
    if args.child is not None:
        print(json.dumps(measure(args)))
        return
    from commits import heading

    from minicpm4.files import write_json
    from minicpm4.machine import total_cores

    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            for case in CASES:
                files = list(Path(folder).rglob("*.page"))
                if case == CASES[-1]:
                    forget(files)
                found[case].append(run(args, "" if case == CASES[0] else folder))
    report = {
        **heading(),
        "cpus": total_cores(),
        "load average (over the number of cpus: a busy machine)": round(os.getloadavg()[0], 1),
        "model": args.model,
        "prompt tokens": args.tokens,
        "files": len(files),
        "bytes": sum(figures["bytes"] for figures in found[CASES[1]][:1]),
        "median s": {case: round(median(one["seconds"] for one in each), 3) for case, each in found.items()},
        "each": found,
    }
    print(json.dumps(report, indent=1))
    if args.json is not None:
        write_json(args.json, report)


def run(args: argparse.Namespace, folder: str) -> Any:
    """One process."""
    command = [sys.executable, __file__, args.model, "--tokens", str(args.tokens), "--child", folder]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """In the process: the first token of a prompt that this process has never seen."""
    from minicpm4 import LLM, SamplingParams

    ids = [(7919 * i) % 40000 + 100 for i in range(args.tokens)]
    with LLM(args.model, context=args.tokens + 64, max_batch=1, cache_dir=args.child or None) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=1))
        began = time.perf_counter()
        out = llm.generate(ids, SamplingParams(max_tokens=1))
        seconds = time.perf_counter() - began
    kept = sum(file.stat().st_size for file in Path(args.child).rglob("*.page")) if args.child else 0
    return {"seconds": seconds, "cached tokens": out.metrics.cached_tokens, "bytes": kept}


def forget(files: list[Path]) -> None:
    """Have the system drop its cache of files."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where folders of files are made; a disk, not memory")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
