"""Settings of block-sparse attention (InfLLM v2), as in a checkpoint's ``sparse_config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minicpm4.config.strict import check_integer, from_mapping, require
from minicpm4.errors import ConfigError

DENSE_LEN = 8192  # tokens, where neither checkpoint nor caller says
MAX_SIZE = (1 << 24) - 1  # of lengths and counts
AUTO = "auto"  # instead of settings: those that were measured for the model
MAX_TOKENS = (1 << 62) - 1  # of a length that is only compared
COARSE = 4  # coarse compressed keys of the LSE approximation are 4 times as long and as far apart


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """Which key/value blocks a query attends to (InfLLM v2, section 3).

    Lengths are in tokens, ``init_blocks`` and ``topk`` in blocks. A query at position p attends to
    the first ``init_blocks`` blocks, the ``window_size // block_size`` blocks up to its own, and
    the ``topk - init_blocks`` best of the others: ``topk + window_size // block_size`` in all.
    Queries that see fewer than ``dense_len`` tokens (themselves included) attend to everything;
    -1 means none do, None that nobody has said (then it is 8,192: ``dense_below``).
    ``lse_approx`` takes the softmax denominator of the block scores over coarse compressed keys.
    ``use_nope`` scores with keys and queries before rotary positions.

    Raises ConfigError when sizes do not divide or are out of range.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    block_size: int = 64
    window_size: int = 2048
    topk: int = 64
    use_nope: bool = False
    dense_len: int | None = None
    lse_approx: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "kernel_stride", "block_size", "window_size", "topk"):
            check_integer(f"sparse_config.{name}", getattr(self, name), 1, MAX_SIZE)
        check_integer("sparse_config.init_blocks", self.init_blocks, 0, self.topk)
        if self.dense_len is not None:
            check_integer("sparse_config.dense_len", self.dense_len, -1, MAX_TOKENS)
        self._require_multiple("kernel_size", "kernel_stride")
        self._require_multiple("block_size", "kernel_stride")
        require(
            self.window_size >= self.block_size,
            f"sparse_config.window_size = {self.window_size} is below block_size = {self.block_size}",
            "a query's own block must be in its window",
        )
        coarse = COARSE * self.kernel_stride
        if self.lse_approx and self.block_size % coarse and coarse % self.block_size:
            raise ConfigError(
                f"sparse_config.lse_approx needs block_size = {self.block_size} and "
                f"4 x kernel_stride = {coarse} to divide one another"
            )

    def _require_multiple(self, name: str, divisor: str) -> None:
        a, b = getattr(self, name), getattr(self, divisor)
        require(a % b == 0, f"sparse_config.{name} = {a} is not a multiple of {divisor} = {b}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "sparse_config") -> SparseConfig:
        """Read a ``sparse_config`` table. Raises ConfigError."""
        return from_mapping(cls, mapping, where)

    @property
    def local_blocks(self) -> int:
        """Blocks of the sliding window, the query's own included."""
        return self.window_size // self.block_size

    @property
    def budget(self) -> int:
        """The most blocks that one query reads."""
        return self.topk + self.local_blocks

    @property
    def dense_below(self) -> int:
        """Queries that see fewer tokens attend to everything."""
        return DENSE_LEN if self.dense_len is None else self.dense_len

    @property
    def first_choosing(self) -> int:
        """The first position whose query does not read every block before it."""
        return max(self.dense_below - 1, self.budget * self.block_size)

    @property
    def compressed_per_block(self) -> int:
        """Compressed keys that end in one block."""
        return self.block_size // self.kernel_stride

    @property
    def coarse_per_block(self) -> int:
        """Coarse compressed keys that end in one block (at most)."""
        return max(1, self.block_size // (COARSE * self.kernel_stride))

    @property
    def at_once(self) -> SparseConfig:
        """The same, of which no query is dense for the number of tokens that it sees."""
        return replace(self, dense_len=-1)

    def within(self, blocks: int) -> SparseConfig:
        """The settings that choose the same among the first ``blocks`` blocks, and read no more than those:
        what has room for a choice needs no more than there is to choose from."""
        topk = min(self.topk, blocks)
        window = min(self.window_size, blocks * self.block_size)
        return replace(self, topk=topk, init_blocks=min(self.init_blocks, topk), window_size=window)

    def is_dense_at(self, position: int) -> bool:
        """Whether the query at ``position`` attends to every block."""
        return position + 1 < self.dense_below

    def num_selected(self, position: int) -> int:
        """How many blocks the query at ``position`` reads."""
        visible = position // self.block_size + 1
        if self.is_dense_at(position):
            return visible
        init = min(self.init_blocks, visible)
        first_local = max(visible - self.local_blocks, 0)
        fixed = visible - first_local + min(init, first_local)
        return fixed + min(self.topk - self.init_blocks, visible - fixed)
