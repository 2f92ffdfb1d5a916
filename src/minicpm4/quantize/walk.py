"""One layer at a time over all calibration texts: what reaches each matrix, and what the layer makes of
it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import AttentionWeights, StoredKV
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.step import KVLayer, Step
from minicpm4.model.cache import PAGE_SIZE
from minicpm4.model.forward import attended
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.weights import LayerWeights

__all__ = ["STAGES", "See", "Walk", "as_floats"]

Floats = NDArray[np.float32]
See = Callable[[Floats], None]

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""A layer's matrices in the order in which rows reach them; those of a stage are reached by the same rows."""


def as_floats(values: Floats) -> PackedTensor:
    """A float32 matrix (out, in) as the kernels take it."""
    return PackedTensor(
        spec=QuantSpec(kind="f32"),
        shape=(values.shape[0], values.shape[1]),
        codes=np.ascontiguousarray(values, np.float32),
    )


class Walk:
    """The states of all ``texts`` (of each the numbers of rows of ``embed``) at one depth of a model;
    ``advance`` goes a layer further.

    Each text is run from its first token, alone, with dense attention and float32 keys and values; of its
    first ``stored`` tokens they are those that the layers have stored. ``x``: a state (n, hidden) for each
    text. Memory: these, and twice the widest activations of one text."""

    def __init__(
        self,
        ops: OpTable,
        config: ModelConfig,
        embed: PackedTensor,
        texts: Sequence[Sequence[int]],
        stored: int = 0,
    ) -> None:
        self._ops, self._config, self._stored = ops, config, stored
        longest = max(map(len, texts))
        self._rotary = RotaryTable(config, longest)
        self._again = False
        self._pages = -(-longest // PAGE_SIZE)
        self._texts = [np.asarray(text, np.int32) for text in texts]
        self.x: list[Floats] = [np.array(ops.embed(embed, ids, config.scale_emb)) for ids in self._texts]

    def stages(self, index: int, layer: Callable[[], LayerWeights]) -> Iterator[Callable[[See], None]]:
        """Of layer ``index`` the four ``STAGES``, one after another: each is a function that shows the rows
        of each text that reach it. Between them the caller may change what ``layer()`` gives for the stage
        just seen: what follows is computed with that, and afterwards ``x`` are the states after the layer.
        What attention gives is made before it is shown: who then changes v says ``attend_again``."""
        scale = self._config.residual_scale
        kv = self._layer(index)

        yield lambda see: self._each(see, lambda x, ids: self._normed_attention(layer(), x))
        outputs = self._attended(layer().attention, kv)
        yield lambda see: _all(see, outputs)
        if self._again:
            self._again = False
            outputs.clear()
            outputs = self._attended(layer().attention, kv)
        for i, a in enumerate(outputs):
            self.x[i] = np.array(self._ops.add_linear(self.x[i], a, layer().attention.o, scale))
        outputs.clear()

        yield lambda see: self._each(see, lambda x, ids: self._normed_feed_forward(layer(), x))

        def down(see: See) -> None:
            for x in self.x:
                see(np.array(self._ops.gate_up(x, layer().feed_forward)))

        yield down
        for i, x in enumerate(self.x):
            h = np.array(self._ops.gate_up(x, layer().feed_forward))
            self.x[i] = np.array(self._ops.add_linear(x, h, layer().feed_forward.down, scale))

    def advance(self, index: int, layer: LayerWeights) -> None:
        """Go through layer ``index`` and look at nothing."""
        for _ in self.stages(index, lambda: layer):
            pass

    def keys_and_values(self, index: int, layer: LayerWeights) -> StoredKV:
        """What layer ``index`` makes of the last text, which is no longer than a page: keys, rotated, and
        values (n, hkv, d)."""
        kv, n = self._layer(index), len(self._texts[-1])
        self._attended(layer.attention, kv)
        keys, values = (np.asarray(self._ops.get(one))[0] for one in (kv.keys, kv.values))
        return StoredKV(
            keys=np.ascontiguousarray(keys[:, :, :n].transpose(2, 0, 1)),
            values=np.ascontiguousarray(values[:, :n].transpose(1, 0, 2)),
        )

    def attend_again(self) -> None:
        """v has been changed after what attention gives was shown."""
        self._again = True

    def apart(self, count: int) -> Walk:
        """The first ``count`` texts alone, where they are: to go another way with them."""
        found = copy(self)
        found._texts, found.x = self._texts[:count], [one.copy() for one in self.x[:count]]
        return found

    def join(self, other: Walk) -> None:
        """Take the texts of ``other``, at the same depth, along behind one's own."""
        self._texts, self.x = [*self._texts, *other._texts], [*self.x, *other.x]

    def _attended(self, part: AttentionWeights, kv: KVLayer) -> list[Floats]:
        """What attention gives of all texts."""
        found = []
        for ids, x in zip(self._texts, self.x, strict=True):
            made = []
            for start, stop in ((0, self._stored), (self._stored, len(ids))):
                if start < stop:
                    step = self._step(ids[start:stop], start)
                    made.append(np.array(attended(self._ops, part, kv, step, x[start:stop])))
            found.append(np.concatenate(made).reshape(len(ids), -1))
        return found

    def _each(self, see: See, of: Callable[[Floats, NDArray], Floats]) -> None:
        for x, ids in zip(self.x, self._texts, strict=True):
            see(of(x, ids))

    def _normed_attention(self, layer: LayerWeights, x: Floats) -> Floats:
        return np.array(self._ops.rms_norm(x, layer.attention.norm, layer.attention.eps))

    def _normed_feed_forward(self, layer: LayerWeights, x: Floats) -> Floats:
        return np.array(self._ops.rms_norm(x, layer.feed_forward.norm, layer.feed_forward.eps))

    def _layer(self, index: int) -> KVLayer:
        c = self._config
        pages = page_arrays(
            "float32", heads=c.num_key_value_heads, d=c.head_dim, page_size=PAGE_SIZE, sparse=None
        )
        arrays = {
            name: self._ops.zeros((self._pages, *shape), dtype) for name, (shape, dtype) in pages.items()
        }
        return KVLayer(**arrays, window=c.windows[index] if c.windows else 0)

    def _step(self, ids: NDArray[np.int32], start: int) -> Step:
        """Rows of a text from its token ``start`` on; all before ``stored`` or none."""
        cos, sin = self._rotary.tables(start + len(ids))
        return Step(
            ids=ids,
            positions=np.arange(start, start + len(ids), dtype=np.int32),
            cu_rows=np.array([0, len(ids)], np.int32),
            page_table=np.arange(self._pages, dtype=np.int32)[None],
            cos=cos,
            sin=sin,
            stored=start < self._stored,
        )


def _all(see: See, outputs: Sequence[Floats]) -> None:
    for one in outputs:
        see(one)
