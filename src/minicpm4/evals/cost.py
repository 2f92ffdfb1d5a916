"""What a point of a benchmark must move and compute at least: the figures behind shares of a limit."""

from __future__ import annotations

from minicpm4.config import SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.model.cache import page_nbytes, page_size_for
from minicpm4.model.weights import ModelWeights

__all__ = ["decode_bytes", "prefill_flops"]


def decode_bytes(
    weights: ModelWeights, depth: int, kv: KVFormat, sparse: SparseConfig | None, batch: int = 1
) -> float:
    """Bytes read for one token that sees ``depth`` tokens: weights, and the keys and values it reads.

    With sparse attention also the compressed keys, which every choice of blocks looks at. ``batch``
    sequences decoded together share the weights' bytes.
    """
    embed = 0 if weights.head is weights.embed else weights.embed.nbytes
    page = page_size_for(sparse)
    token = page_nbytes(weights.config, page_size=page, kv=kv, sparse=None) / page
    tokens, compressed = float(depth), 0.0
    if sparse is not None and not sparse.is_dense_at(depth):
        tokens = min(depth, sparse.num_selected(depth) * page)
        whole = page_nbytes(weights.config, page_size=page, kv=kv, sparse=sparse) / page
        compressed = depth * (whole - token)
    return (weights.nbytes - embed) / batch + tokens * token + compressed


def prefill_flops(weights: ModelWeights, depth: int, tokens: int, sparse: SparseConfig | None) -> float:
    """Operations (products and sums) of reading ``tokens`` after ``depth``: all but the head's."""
    config = weights.config
    matrices = sum(
        linear.weight.shape[0] * linear.weight.shape[1]
        for layer in weights.layers
        for linear in layer.linears()
    )
    seen = 0.0
    for position in range(depth, depth + tokens):
        if sparse is None or sparse.is_dense_at(position):
            seen += position + 1
        else:
            seen += min(position + 1, sparse.num_selected(position) * sparse.block_size)
            # Scores of the compressed keys: half of what attention does for a token.
            seen += position / sparse.kernel_stride / 2
    width = config.num_attention_heads * config.head_dim
    return 2.0 * matrices * tokens + 4.0 * width * config.num_hidden_layers * seen
