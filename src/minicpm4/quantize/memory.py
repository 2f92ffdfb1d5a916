"""What a conversion takes at its peak, told before it begins."""

from __future__ import annotations

from math import prod

from minicpm4.config import ModelConfig
from minicpm4.formats.names import layer_tensors
from minicpm4.quantize.budget import TEXTS, TOKENS
from minicpm4.quantize.gptq import factor_nbytes, sum_nbytes
from minicpm4.quantize.options import QuantizeOptions

__all__ = ["planned_memory"]

_TEMPORARY = 4  # float32 arrays of a matrix's size while it is rounded


def planned_memory(config: ModelConfig, options: QuantizeOptions | None, layout: str, tokens: int) -> int:
    """Bytes at the peak of a conversion, beside the source's mapped file: rounding that looks at calibration
    texts of ``tokens`` tokens together (``options`` None: nothing is rounded), writing in ``layout``,
    reading again."""
    embeddings = 4 * config.vocab_size * config.hidden_size
    sizes = [4 * prod(shape) for shape in layer_tensors(config).values()]
    layer, largest = sum(sizes), max(sizes)
    own = not config.tie_word_embeddings or (options is not None and options.rotate)
    # Embeddings and a head of its own: both as they are written, and of one what it is made of.
    heads = 2 if own or layout == "llama" else 1
    ends = (heads + (2 if layout == "llama" else 1)) * embeddings * 9 // 8
    plain = max(ends, 2 * layer + _TEMPORARY * largest)
    if options is None or not options.calibrated:
        return plain
    attended = config.num_attention_heads * config.head_dim
    widths = (config.hidden_size, attended, config.hidden_size, config.intermediate_size)
    states = 4 * tokens * (config.hidden_size * (2 if options.smoothed else 1) + attended)
    copies = [4 * width * width for width in widths]
    factors = [factor_nbytes(width) for width in widths] if options.gptq else copies
    sums = [sum_nbytes(width) for width in widths]
    statistics = max(sum(pair) for pair in zip(sums, factors, strict=True))
    if options.smoothed:
        statistics = max(statistics, sum(sums) + max(copies))
    if options.bits is not None:  # embeddings and a head, and the head rounded; each layer's own texts
        few = 4 * TEXTS * TOKENS * config.hidden_size * (config.num_hidden_layers + 4)
        plain = max(plain, (heads + 2) * embeddings * 9 // 8 + few + 2 * layer)
    # Embeddings are there while states are made of them; later a layer, and what it has become.
    begun = (heads + 1 + options.rotate) * embeddings * 9 // 8 + states
    return max(plain, begun, layer + layer // 2 + states + statistics + _TEMPORARY * largest)
