"""What a conversion takes at its peak, told before it begins."""

from __future__ import annotations

from math import prod

from minicpm4.config import ModelConfig
from minicpm4.formats.names import layer_tensors
from minicpm4.quantize.gptq import factor_nbytes, sum_nbytes
from minicpm4.quantize.options import QuantizeOptions

__all__ = ["planned_memory"]

_TEMPORARY = 4  # float32 arrays of a matrix's size while it is rounded


def planned_memory(config: ModelConfig, options: QuantizeOptions, tokens: int) -> int:
    """Bytes at the peak of a conversion, beside the source's mapped file, that looks at calibration texts of
    ``tokens`` tokens together."""
    embeddings = 4 * config.vocab_size * config.hidden_size
    sizes = [4 * prod(shape) for shape in layer_tensors(config).values()]
    layer, largest = sum(sizes), max(sizes)
    # The embeddings, and of them and a head of its own one in floats and what both become.
    ends = (4 if options.rotate else 2 if config.tie_word_embeddings else 3) * embeddings * 9 // 8
    if not options.calibrated:
        return max(ends, layer + _TEMPORARY * largest)
    attended = config.num_attention_heads * config.head_dim
    widths = (config.hidden_size, attended, config.hidden_size, config.intermediate_size)
    states = 4 * tokens * (config.hidden_size * (2 if options.smoothed else 1) + attended)
    copies = [4 * width * width for width in widths]
    factors = [factor_nbytes(width) for width in widths] if options.gptq else copies
    sums = [sum_nbytes(width) for width in widths]
    statistics = max(sum(pair) for pair in zip(sums, factors, strict=True))
    if options.smoothed:
        statistics = max(statistics, sum(sums) + max(copies))
    # Rounded matrices of the layer stay beside its floats.
    return max(ends + states, layer * 9 // 8 + states + statistics + _TEMPORARY * largest)
