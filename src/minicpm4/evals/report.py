"""The result of a benchmark as plain values: for tables, JSON and plots."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from minicpm4.evals.limits import DeviceLimits
from minicpm4.evals.speed import BenchModel, Measurement, Point
from minicpm4.machine import cpu_name, total_cores
from minicpm4.plot import Curve, chart

__all__ = ["as_json", "cpu_name", "curves", "run_name", "share", "svg"]


def run_name(point: Point) -> str:
    """What a point runs, as in ``decode 4 x 32``."""
    together = f"{point.batch} x " if point.batch > 1 else ""
    return f"{point.kind} {together}{point.tokens:,}"


def share(model: BenchModel, measurement: Measurement, limits: DeviceLimits) -> float:
    """How much of the limit that binds a point reaches: bandwidth (decode), float32 products (prefill)."""
    limit = limits.bandwidth if measurement.point.kind == "decode" else limits.float32
    return measurement.rate * model.cost(measurement.point) / limit


def as_json(
    name: str, model: BenchModel, measurements: Sequence[Measurement], limits: DeviceLimits
) -> dict[str, Any]:
    """Everything there is to know about a run. Rates in tokens per second, sizes in bytes."""
    from minicpm4 import __version__

    return {
        "minicpm4": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cpus": total_cores(), "system": platform.platform()},
        "limits": {"bandwidth_bytes_per_s": limits.bandwidth, "float32_ops_per_s": limits.float32},
        "model": name,
        "parameters": model.weights.num_parameters,
        "formats": dict(model.weights.formats()),
        "weight_bytes": model.weights.nbytes,
        "kernels": model.ops.description,
        "kv": model.options.kv,
        "activations": model.options.activations,
        "chunk": model.options.chunk,
        "points": [_point(model, measurement, limits) for measurement in measurements],
    }


def curves(measurements: Sequence[Measurement]) -> dict[str, Curve]:
    """Label -> (depth, tokens per second) of each kind, attention and length."""
    found: dict[str, list[tuple[float, float]]] = {}
    for measurement in measurements:
        point = measurement.point
        label = f"{run_name(point)}, {point.attention}"
        found.setdefault(label, []).append((float(point.depth), measurement.rate))
    return {label: sorted(points) for label, points in found.items()}


def svg(name: str, model: BenchModel, measurements: Sequence[Measurement]) -> str:
    """A chart of all measurements."""
    title = f"{name}: {cpu_name()}, {model.ops.description}"
    return chart(title, curves(measurements), "depth (tokens)", "tokens/s")


def _point(model: BenchModel, measurement: Measurement, limits: DeviceLimits) -> dict[str, Any]:
    point = measurement.point
    cost = "bytes_per_token" if point.kind == "decode" else "ops_per_token"
    return {
        "kind": point.kind,
        "attention": point.attention,
        "depth": point.depth,
        "tokens": point.tokens,
        "batch": point.batch,
        "tokens_per_s": measurement.rate,
        "spread": measurement.spread,
        "seconds": list(measurement.seconds),
        cost: model.cost(point),
        "limit_share": share(model, measurement, limits),
    }
