"""This package as a peer of itself: variants "dense" and "sparse" over the same pages.

The request's "options" are the engine's, by name (weights, kv and so on); "batch" is the most sequences
that a point decodes together.
"""

from __future__ import annotations

from typing import Any

from protocol import serve


class Minicpm4Peer:
    """A BenchModel of a GGUF file, weights as stored."""

    def __init__(self, request: dict[str, Any]) -> None:
        from minicpm4.evals.speed import BenchModel, BenchOptions
        from minicpm4.model.source import open_model

        found = open_model(request["gguf"])
        chosen = request.get("options", {})
        options = BenchOptions(threads=request["threads"], batch=request.get("batch", 1), **chosen)
        self.model = BenchModel(found.checkpoint, found.config, options, request["room"])
        self.model.warm_up()

    def about(self) -> dict[str, Any]:
        from minicpm4 import __version__

        sparse = self.model.sparse["sparse"]
        assert sparse is not None
        return {
            "version": __version__,
            "kernels": self.model.ops.description,
            "weights": self.model.notes.removeprefix("weights: "),
            "kv": self.model.options.kv,
            "sparse": f"at every token, up to {sparse.budget} blocks of {sparse.block_size}"
            if sparse
            else "",
        }

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        return self.model.seconds(self._point(kind, depth, tokens, variant, batch))

    def limits(self) -> dict[str, Any]:
        """Memory bandwidth and float32 products, as ``minicpm4 bench`` measures them."""
        from minicpm4.evals.limits import measure_limits

        found = measure_limits(self.model.ops, self.model.ops.threads)
        return {"bandwidth_bytes_per_s": found.bandwidth, "float32_ops_per_s": found.float32}

    def cost(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> dict[str, Any]:
        """Bytes of a decoded token or operations of a read one, at least."""
        return {"cost": self.model.cost(self._point(kind, depth, tokens, variant, batch))}

    def _point(self, kind: str, depth: int, tokens: int, variant: str, batch: int) -> Any:
        from minicpm4.evals.speed import Point

        return Point(
            kind=kind,  # type: ignore[arg-type]
            attention=variant,
            depth=depth,
            tokens=tokens,
            batch=batch,
        )


if __name__ == "__main__":
    serve(Minicpm4Peer, "pip install . in the checkout")
