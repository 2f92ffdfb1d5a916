"""What converting a large model takes: two layers of a published shape, random weights, the whole way of
``minicpm4 convert`` (calibration, rounding, writing, reading again, computing with it).

Told are the memory that was planned, the bound that plans keep to, the peak of anonymous memory (pages of
mapped files are the system's to take back), seconds a layer, and what that makes of all layers. Weights are
written in bf16 to a temporary folder; the text to calibrate on is bytes drawn at random.

    .venv/bin/python benchmarks/large_conversion.py [--shape 8b] [--layers 2] [--method s-gptq] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commits import commit
from load_time import SHAPES, make

from minicpm4.evals.conversion import Calibration, convert
from minicpm4.files import write_file
from minicpm4.machine import cpu_name, total_cores
from minicpm4.model.source import open_model
from minicpm4.quantize.memory import memory_bound, planned_memory
from minicpm4.quantize.options import METHODS, QuantizeOptions

EVERY = 0.02  # seconds between looks at the memory
ALL_LAYERS = {"0.5b": 24, "8b": 32}


class Watch:
    """The peak of this process's anonymous memory, and when each part of the work began and went on."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}
        self.work: dict[str, list[float]] = {}  # seconds of all cores, which tell more on a shared machine
        self._part, self._done, self._before = "beginning", threading.Event(), anonymous()
        threading.Thread(target=self._look, daemon=True).start()

    def end(self) -> None:
        self._done.set()

    @contextmanager
    def bar(self, what: str, unit: str, *, before: int = 0) -> Iterator[Callable[[int, int], None]]:
        """Progress of one part of a conversion."""
        self._part, began, before = what, time.monotonic(), time.process_time()
        times, work = self.times.setdefault(what, []), self.work.setdefault(what, [])

        def step(done: int, count: int) -> None:
            times.append(round(time.monotonic() - began, 1))
            work.append(round(time.process_time() - before, 1))
            print(f"{what}: {done} of {count} {unit}, {times[-1]:.0f} s", file=sys.stderr, flush=True)

        yield step
        self._part = f"after {what}"

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            taken = anonymous() - self._before
            self.peaks[self._part] = max(self.peaks.get(self._part, 0), taken)


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    arguments, version = parse(), commit()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        report = measure(arguments, Path(place)) | {"commit": version}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        write_file(Path(arguments.json), text + "\n")


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    model, text = make(arguments, place / "model"), place / "text.txt"
    words = arguments.samples * arguments.length * 2
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(words)))
    options = QuantizeOptions(method=arguments.method, group=arguments.group, rotate=arguments.rotate)
    texts = Calibration(files=(text,), samples=arguments.samples, length=arguments.length)
    config, tokens = open_model(model).config, arguments.samples * arguments.length
    watch, began = Watch(), time.monotonic()
    done = convert(str(model), place / "made", options, arguments.to, texts, watch.bar)
    seconds = time.monotonic() - began
    watch.end()
    layer, work = (a_layer(one["rounding"]) for one in (watch.times, watch.work))
    layers = ALL_LAYERS[arguments.shape]
    return {
        "shape": arguments.shape,
        "layers": arguments.layers,
        "options": {"weights": "int4", "group": arguments.group, "method": arguments.method}
        | {"rotate": arguments.rotate, "to": arguments.to, "tokens": tokens},
        "planned_nbytes": planned_memory(config, options, tokens),
        "bound_nbytes": memory_bound(config, tokens),
        "peak_nbytes": max(watch.peaks.values()),
        "peaks": watch.peaks,
        "seconds": round(seconds, 1),
        "seconds_by_part": watch.times,
        "seconds_of_cores_by_part": watch.work,
        "seconds_of_cores_a_layer": round(work, 1),
        "seconds_a_layer": round(layer, 1),
        "all_layers": layers,
        "estimated_seconds": round(seconds + layer * (layers - arguments.layers)),
        "written_nbytes": done.written.nbytes,
        "worst_output_error": max(row.error or 0.0 for row in done.rows if ".layers." in row.name),
        "machine": {"cpu": cpu_name(), "cpus": total_cores()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def a_layer(ends: list[float]) -> float:
    """Seconds between the ends of layers."""
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="8b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--method", choices=[*METHODS], default=QuantizeOptions().method)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--rotate", action="store_true")
    parser.add_argument("--to", default="compressed-tensors")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--folder", help="where the model is written for the time being")
    parser.add_argument("--json", help="write the report to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
