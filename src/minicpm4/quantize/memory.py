"""What a conversion takes at its peak, told before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from minicpm4.config import ModelConfig
from minicpm4.formats.names import EMBED, expected_tensors, layer_tensors
from minicpm4.formats.quant import QuantSpec, packed_nbytes
from minicpm4.model.stored_prefix import stored_nbytes
from minicpm4.quantize.budget import TEXTS, TOKENS
from minicpm4.quantize.ends import type_nbytes
from minicpm4.quantize.gptq import hessian_nbytes
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.smooth import GPTQ_POWERS, GPTQ_ROWS, HELD, HELD_NBYTES, ROWS
from minicpm4.quantize.walk import STAGES

__all__ = ["least_disk", "memory_bound", "planned_memory"]

_TEMPORARY = 3  # float32 arrays of a matrix's size while it is rounded
_ON_GRIDS = 6  # the same while rows are rounded on several grids at once
_ANSWERS = 6  # float64 arrays of a text's logits while two are compared
_SPARE = 10**9


def memory_bound(config: ModelConfig, tokens: int) -> int:
    """What a conversion may take at most: the weights of two layers in float32 (of embeddings and a head,
    where these are larger), activations of a layer (what comes in, what attention gives, what goes out), and
    1 GB."""
    layer = 4 * sum(prod(shape) for shape in layer_tensors(config).values())
    ends = 4 * config.vocab_size * config.hidden_size
    return 2 * max(layer, ends) + _states(config, tokens, 2) + _SPARE


def planned_memory(config: ModelConfig, options: QuantizeOptions | None, tokens: int) -> int:
    """Bytes at the peak of a conversion, beside the source's mapped file: rounding that looks at calibration
    texts of ``tokens`` tokens together (``options`` None: nothing is rounded), writing in any layout,
    reading again. Raises ConfigError for options that do not fit."""
    embeddings = 4 * config.vocab_size * config.hidden_size
    sizes = [4 * prod(shape) for shape in layer_tensors(config).values()]
    layer, largest = sum(sizes), max(sizes)
    if options is None:  # a matrix is at most multiplied: one copy of it, of what lies in a mapped file
        return max(embeddings * 3 // 2, 2 * layer + largest)
    # Embeddings, or a head: what is written, and what it is made of.
    ends = 2 * embeddings * 9 // 8
    plain = max(ends, 2 * layer + _TEMPORARY * largest)
    # The stored prefix as it was made, a layer's share of it and what is written.
    stored = 3 * stored_nbytes(config, len(options.stored_prefix))
    if not options.calibrated:
        return plain + stored
    states = _states(config, tokens, 1)
    if options.bits is not None:  # each layer's own texts; two layers, or the head, rounded, too, and answers
        few = 4 * TEXTS * TOKENS * config.hidden_size * (config.num_hidden_layers + 4)
        answers = _ANSWERS * 8 * TOKENS * config.vocab_size
        plain = max(plain, few + 2 * layer, few + embeddings * 3 // 2 + answers)
    return stored + max(plain, states + _rounding(config, options, tokens))


def least_disk(
    config: ModelConfig,
    specs: Mapping[str, QuantSpec | None],
    layout: str,
    asked: Callable[[str], int | None] = lambda name: None,
) -> int:
    """Bytes on disk that a conversion takes at least: matrices that are rounded to ``specs``, once in the
    work folder and once as they are written in ``layout``; what becomes of others is not known before.
    ``asked``: the type of GGUF in which a matrix is to be written, None: one that holds it as it is."""
    total = 0
    for name, spec in specs.items():
        if spec is not None:
            # A head that rotation makes of tied embeddings is as large as these.
            rows, columns = (expected_tensors(config).get(name) or expected_tensors(config)[EMBED])[:2]
            written = 2 if layout == "llama" else 4  # bytes of a float
            floats = layout in ("hf", "llama") and spec.row.group
            packed = packed_nbytes((rows, columns), spec)
            number = asked(name)
            if number is not None:
                total += packed + type_nbytes((rows, columns), number)
            else:
                total += packed + (written * rows * columns if floats else packed)
    return total


def _states(config: ModelConfig, tokens: int, copies: int) -> int:
    """Bytes of ``copies`` of all texts' states, and of what attention gives of them."""
    attended = config.num_attention_heads * config.head_dim
    return 4 * tokens * (config.hidden_size * copies + attended)


def _rounding(config: ModelConfig, options: QuantizeOptions, tokens: int) -> int:
    """Bytes of a layer and all that is made of it, beside the texts' states: in the stage that takes most."""
    shapes = layer_tensors(config)
    specs = {
        name.removeprefix("model.layers.0."): spec
        for name, spec in options.specs(config).items()
        if name.startswith("model.layers.0.")
    }
    held = sum(4 * prod(shape) for shape in shapes.values())
    hessians = {names: hessian_nbytes(_matrix(shapes, names[0])[1]) for names in STAGES}
    peaks = []
    for names in STAGES:
        if options.smoothed:
            peaks.append(held + hessians[names] + _smoothing(_matrix(shapes, names[0])[1], tokens, options))
        for name in names:
            shape, spec = _matrix(shapes, name), specs[f"{name}.weight"]
            peaks.append(held + hessians[names] + _TEMPORARY * 4 * prod(shape))
            if spec is not None and spec.row.group:  # its floats are let go
                held += packed_nbytes(shape, spec) - 4 * prod(shape)
    return max(peaks)


def _smoothing(width: int, tokens: int, options: QuantizeOptions) -> int:
    """Bytes of choosing factors for a stage of so many columns: of each of its matrices it is some rows that
    are tried; for GPTQ with all powers at once, beside rows that are held out."""
    if not options.gptq:
        return _TEMPORARY * 4 * ROWS * width
    return min(4 * tokens * width // HELD, HELD_NBYTES) + _ON_GRIDS * 4 * GPTQ_ROWS * len(GPTQ_POWERS) * width


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    rows, columns = shapes[f"{name}.weight"]
    return rows, columns
