"""What a device needs to run steps: the only place that makes an engine's pool, rotary table and runner."""

from __future__ import annotations

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.runner import Runner
from minicpm4.kernels.contract import OpTable
from minicpm4.model.cache import KVPool
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import ModelWeights


class Executor:
    """Cache and rotary table where ``ops`` computes, and runners that share them.

    ``context``: the most tokens of one sequence; the pool as in KVPool. Raises UnsupportedError for a format
    of pages that the table has no kernels for.
    """

    def __init__(
        self,
        ops: OpTable,
        config: ModelConfig,
        *,
        context: int,
        num_pages: int,
        page_size: int,
        kv: KVFormat,
        sparse: SparseConfig | None,
    ) -> None:
        ops.check_supports(kv=kv, windows=bool(config.windows))
        self.ops = ops
        """May be changed for another table of the same device: runners made from then on use it."""
        self.pool = KVPool(
            config,
            num_pages=num_pages,
            page_size=page_size,
            kv=kv,
            sparse=sparse,
            zeros=ops.zeros,
            spare=not ops.on_host,
        )
        self.rotary = RotaryTable(config, context)
        self._max_pages = -(-context // page_size)

    def runner(
        self, weights: ModelWeights, sparse: SparseConfig | None, *, max_rows: int, max_sequences: int
    ) -> Runner:
        """A runner for steps of at most ``max_rows`` rows of ``max_sequences`` sequences. ``sparse``: how it
        attends; the pool has room for compressed keys if it was made with settings of the same sizes."""
        return _runner_class(self.ops)(
            self.ops,
            weights,
            self.pool,
            self.rotary,
            None if sparse is None else sparse.within(self._max_pages),
            max_rows=max_rows,
            max_sequences=max_sequences,
            max_pages=self._max_pages,
        )


def _runner_class(ops: OpTable) -> type[Runner]:
    if ops.on_host:
        return Runner
    from minicpm4.engine.gpu_runner import GpuRunner

    return GpuRunner
