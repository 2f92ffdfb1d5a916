"""That a model which was written computes what it was made to: tokens in, logits out, beside its own values
in float32. Tensors may all be right where a configuration, or how a layer reads its weights, is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from minicpm4.errors import CheckpointError, TextError
from minicpm4.formats.names import EMBED, NORM
from minicpm4.formats.packing import row_slices, unpack, unpack_rows
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.quantize.layer import from_packed
from minicpm4.quantize.parts import ENDS, Parts, head_of, is_vector, stem_of
from minicpm4.quantize.walk import Walk, as_floats
from minicpm4.text.gguf_write import differences
from minicpm4.text.model_text import ModelText

__all__ = ["MOST_APART", "TOKENS", "check_tokens", "final_logits", "prove"]

TOKENS = 64
MOST_APART = 1e-4  # of the largest logit: what sums in another order may differ by

Floats = NDArray[np.float32]


def prove(
    made: Parts,
    written: Parts,
    ops: OpTable,
    progress: Callable[[int, int], None] | None = None,
    stored: StoredPrefix | None = None,
) -> float:
    """Run 64 tokens through both, a layer at a time; ``written`` with its weights as they are packed,
    ``made`` with floats; ``ops`` are those of products in float32; ``stored``: of both, then the tokens come
    behind it. Return how far logits are apart, as a part
    of the largest. Raises CheckpointError where that is too far."""
    ids = np.random.default_rng(0).integers(0, made.config.vocab_size, TOKENS).tolist()
    ids = ids if stored is None else [*stored.ids, *ids]
    wanted = final_logits(made, ids, ops, packed=False, stored=stored)
    found = final_logits(written, ids, ops, packed=True, progress=progress, stored=stored)
    if found.shape != wanted.shape:
        raise CheckpointError(f"the written model has {found.shape[1]} logits for {wanted.shape[1]}")
    if not np.isfinite(wanted).all():
        raise CheckpointError(
            "the model's own logits are no finite numbers, before it is written",
            "its weights are damaged, or too large: use the original checkpoint",
        )
    apart = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
    if not apart <= MOST_APART:
        raise CheckpointError(
            f"logits of the written model are {apart:.2g} of the largest apart from those it was made for",
            "nothing is kept of it; try another layout (--to), and please tell us which model that was",
        )
    return apart


def check_tokens(text: ModelText, written: ModelText) -> None:
    """Raise TextError where the tokenizer as it was written reads a text otherwise."""
    for odd in differences(text.tokenizer, written.tokenizer):
        if odd is not None:
            raise TextError(
                f"the tokenizer as it was written reads {odd[:40]!r} as other tokens",
                "nothing is kept of it; please tell us which model that was",
            )


def final_logits(
    made: Parts,
    ids: list[int],
    ops: OpTable,
    *,
    packed: bool,
    progress: Callable[[int, int], None] | None = None,
    stored: StoredPrefix | None = None,
) -> Floats:
    """Logits (n, vocab) of ``made``, a layer of which is in memory at a time; ``ids`` begin with those of
    ``stored``. Raises CheckpointError."""
    config = made.config

    def weight(tensor: PackedTensor) -> PackedTensor:
        return tensor if packed else as_floats(unpack(tensor))

    def advance(index: int) -> None:
        prefix, tensors = f"model.layers.{index}.", made.part(stem_of(index))
        own = {name.removeprefix(prefix): one for name, one in tensors.items()}
        layer = {name: one if is_vector(name) else weight(one) for name, one in own.items()}
        kept = None if stored is None else stored.layer(index)
        walk.advance(index, from_packed(config, layer, kept).weights())

    # Of the embeddings, which may be large, some rows alone; they and the head are read again afterwards.
    rows = np.unique(ids)
    embed, numbers = _rows(made.part(ENDS)[EMBED], rows), np.searchsorted(rows, ids).tolist()
    walk = Walk(ops, config, embed, [numbers], 0 if stored is None else len(stored.ids))
    for index in range(config.num_hidden_layers):
        advance(index)
        if progress is not None:
            progress(index + 1, config.num_hidden_layers)
    norm = unpack(made.part(ENDS)[NORM])[0]
    hidden = ops.rms_norm(walk.x[0], norm, config.rms_norm_eps)
    scaled, head = np.asarray(hidden) * np.float32(config.logit_scale), head_of(made)
    if packed:
        return np.array(ops.linear(scaled, Linear(weight=head)))
    parts = (as_floats(unpack_rows(head, part)) for part in row_slices(*head.shape))
    return np.concatenate([np.array(ops.linear(scaled, Linear(weight=one))) for one in parts], axis=1)


def _rows(embed: PackedTensor, rows: NDArray[np.intp]) -> PackedTensor:
    return as_floats(np.concatenate([unpack_rows(embed, slice(i, i + 1)) for i in rows]))
