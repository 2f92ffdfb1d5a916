"""What one request cost: tokens, seconds, blocks of the cache read, memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minicpm4.config import SparseConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Figures of one request, over all its samples.

    ``prefill_s``: from its first step to its first token, over prompt_tokens - cached_tokens tokens;
    ``decode_s``: from there to its last token, over new_tokens - n tokens. Both include the work done
    for requests beside it. ``accept_length``: tokens written in decoding a pass of the target model, the
    one drawn behind the last accepted draft included; None where no drafts were checked. ``draft_tokens``:
    drafts that were checked, ``accepted_tokens`` of which became text; ``accepted_by_position``: how many
    passes accepted a first draft, a second, and so on.
    ``attention``: "sparse" if any of its tokens chose blocks, else "dense". ``blocks_read_share``:
    blocks read / blocks visible, over the tokens that were run. ``peak_memory``: the most bytes that
    this process has held, 0 where the system does not tell.
    """

    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    new_tokens: int
    decode_s: float
    accept_length: float | None = None
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()
    attention: Literal["dense", "sparse"] = "dense"
    blocks_read_share: float = 1.0
    peak_memory: int = 0


@dataclass(slots=True)
class PassCount:
    """Counts passes of the target model that decode, the tokens that came of them, and drafts."""

    passes: int = 0
    tokens: int = 0
    drafts: int = 0
    accepted: int = 0
    positions: list[int] = field(default_factory=list)

    def add(self, drafts: int, accepted: int, tokens: int) -> None:
        """One sequence's part of a step."""
        self.passes += 1
        self.tokens += tokens
        self.drafts += drafts
        self.accepted += accepted
        self.positions += [0] * (accepted - len(self.positions))
        for i in range(accepted):
            self.positions[i] += 1

    @property
    def accept_length(self) -> float | None:
        """Tokens a pass; None where no drafts were checked."""
        return self.tokens / self.passes if self.drafts else None


class BlockCount:
    """Adds up the blocks that queries read and could have read."""

    def __init__(self, sparse: SparseConfig | None) -> None:
        self._sparse = sparse
        self.read = self.visible = 0
        self.any_sparse = False

    def add(self, start: int, stop: int) -> None:
        """Count the queries at positions ``start`` to ``stop`` - 1."""
        config = self._sparse
        if config is None or stop <= start:
            return
        self.any_sparse |= not config.is_dense_at(stop - 1)
        # Neighbouring queries read equally many blocks, except where the block or the rule changes.
        block, switch = config.block_size, config.dense_below - 1
        while start < stop:
            end = min(stop, (start // block + 1) * block)
            if start < switch < end:
                end = switch
            self.read += (end - start) * config.num_selected(start)
            self.visible += (end - start) * (start // block + 1)
            start = end

    @property
    def share(self) -> float:
        return self.read / self.visible if self.visible else 1.0
