"""Any version of this package, by the parts of ``minicpm4 bench`` that all versions have.

What a version lacks is found out by looking at its signatures, and told: a setting that it does not know is
an error, a point that it cannot be asked for is another, which the driver leaves out for all.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from protocol import serve


class VersionPeer:
    """A BenchModel of a model by its name; ``options`` are fields of BenchOptions.

    ``package``: the folder to import from; what this Python has installed is taken without it.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        if request.get("package"):
            # An editable install puts a finder before the path, which would find the version it was made of.
            sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
            sys.path.insert(0, request["package"])
        from minicpm4.cli import bench
        from minicpm4.evals.speed import BenchOptions, Point

        options = request["options"]
        self._point = Point
        self._fields = {field.name for field in dataclasses.fields(Point)}
        known = {field.name for field in dataclasses.fields(BenchOptions)}
        if unknown := set(options) - known:
            raise ValueError(f"this version's BenchOptions has no {', '.join(sorted(unknown))}")
        self._model: Any = bench.load(request["model"], BenchOptions(**options), request["room"])
        self._model.warm_up()

    def about(self) -> dict[str, Any]:
        import minicpm4

        ops = self._model.ops
        where = str(minicpm4.__path__[0])
        return {"kernels": getattr(ops, "description", ops.name), "notes": self._model.notes, "where": where}

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        values = {"kind": kind, "attention": variant, "depth": depth, "tokens": tokens, "batch": batch}
        if batch == 1 and "batch" not in self._fields:
            del values["batch"]
        if unknown := set(values) - self._fields:
            raise ValueError(f"this version's points have no {', '.join(sorted(unknown))}")
        return float(self._model.seconds(self._point(**values)))


if __name__ == "__main__":
    serve(VersionPeer, "build this version first")
