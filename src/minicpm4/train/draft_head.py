"""A head that drafts, in training beside a model that stays as it is (``minicpm4 spec train``).

The head is that of ``model/heads.py``, the very one that drafts, on ops with gradients. It learns from texts
whose answers the model itself wrote, from the states that it would be shown there:

- EAGLE-3 (arXiv 2503.01840) runs several ``turns`` on its own features, as it will when it drafts
  (``kernels/unrolled.py``); at each it learns which tokens the model finds likely, later ones counting less.
- EAGLE-2 (arXiv 2406.16858): one turn, in which its features are to be the model's next states too.

Row i of a text (the model's states there, and token i + 1) finds token i + 2 + j in turn j, for which the
model's own distribution stands at row i + 1 + j.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from minicpm4.formats.names import EMBED, HEAD, layer_tensors
from minicpm4.formats.packing import unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.kernels.autograd import TorchMatrix
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Step
from minicpm4.kernels.straight_through import rounded
from minicpm4.kernels.unrolled import UnrolledKV, UnrolledOps
from minicpm4.model.head_layout import HeadLayout
from minicpm4.model.source import OpenModel
from minicpm4.model.weights import ModelWeights
from minicpm4.train.loss import distribution_loss
from minicpm4.train.model import Rotary, new_tensor, plant

__all__ = ["DraftHead", "Found", "Shown", "first_values", "states_wanted"]

LATER = 0.8  # of the weight of the turn before it, in the loss
STATES, TOKENS = 1.0, 0.1  # parts of EAGLE-2's loss
NOISE = 0.01  # of the first values of what the model has no part for


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shown:
    """A text of the model: token ``ids`` (n,), of which those from ``start`` on are its answer, and its
    states after so many layers (n - 1, width): at all tokens but the last."""

    ids: NDArray[np.int32]
    start: int
    states: Mapping[int, Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What a batch came to. ``loss`` has a gradient; ``right`` (rows, turns): which drafts were the answer's
    tokens, of rows that have all turns within it; ``nll``: of the first turn, nats a token."""

    loss: Tensor
    right: NDArray[np.bool_]
    nll: float

    @property
    def accept_length(self) -> float:
        """Tokens a pass: the model's own, and as many drafts as are right one behind another."""
        return accept_length(self.right)


def accept_length(right: NDArray[np.bool_]) -> float:
    """Of rows of drafts that are right or not."""
    return 1.0 + float(np.logical_and.accumulate(right, axis=1).sum(axis=1).mean()) if len(right) else 1.0


def states_wanted(layout: HeadLayout) -> tuple[int, ...]:
    """After how many of the model's layers a head needs states to learn: its own, and the last."""
    return tuple(dict.fromkeys([*layout.hidden, layout.model.num_hidden_layers]))


class DraftHead(nn.Module):
    """The head of ``layout`` beside the model of ``source``; ``tensors`` by the names of the layout.
    ``rounding``: the format that the forward sees its matrices rounded to (quantisation-aware training)."""

    def __init__(
        self,
        layout: HeadLayout,
        source: OpenModel,
        tensors: Mapping[str, Tensor],
        turns: int,
        rounding: QuantSpec | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.turns = layout, turns if layout.form == "eagle3" else 1
        self._rounding = rounding
        for name, tensor in tensors.items():
            plant(self, name, tensor)
        self._ops = UnrolledOps()
        self._rotary = Rotary(layout.config)
        self._target = _target(source)
        chosen = torch.from_numpy(layout.tokens.astype(np.int64))
        every = len(chosen) == source.config.vocab_size
        head: Any = self._target.head
        self._rows = head.tensor if every else head.tensor[chosen]  # of the model's head, for the drafts
        self._own = torch.full((source.config.vocab_size,), -1).index_put(
            (chosen,), torch.arange(len(chosen))
        )

    @property
    def _linears(self) -> Any:
        """How the forward sees the parameters."""
        found = dict(self.named_parameters())

        def linear(name: str) -> Linear:
            weight: Any = self._seen(f"{name}.weight")
            bias: Any = found.get(f"{name}.bias")
            return Linear(weight=weight, bias=bias)

        return linear

    def _seen(self, name: str) -> TorchMatrix:
        return TorchMatrix(tensor=self.get_parameter(name), fake=self._rounding)

    def final(self, name: str) -> Tensor:
        """A parameter as the forward sees it."""
        value = self.get_parameter(name).detach()
        return value if value.ndim < 2 or self._rounding is None else rounded(value, self._rounding)

    @property
    def is_rounded(self) -> bool:
        """Whether the forward sees its matrices rounded."""
        return self._rounding is not None

    def forward(self, texts: Sequence[Shown]) -> Found:
        """Run ``texts``, whose answers have two tokens or more."""
        batch = _Batch(texts)
        vector: Any = self.get_parameter
        head = self.layout.build(self._ops, self._target, vector, self._linears)
        kv: Any = UnrolledKV(head.config.num_key_value_heads, head.config.head_dim)
        kv.rows = batch.rows
        wanted, states = self._wanted(texts)
        matrix = self._matrix
        total, right, nll = torch.zeros(()), [], 0.0
        entered: Any = [batch.first(texts, one) for one in head.hidden]
        features: Any = head.fuse(entered)
        rows: Any
        for turn in range(self.turns):
            step, following = batch.step(turn, self._rotary)
            features, rows = head.step(step, following, features, kv)
            if turn == 0:
                features, rows = features[batch.rows], rows[batch.rows]
            kept = batch.within(turn)
            own = self._own[batch.tokens(turn)[kept]]
            loss, best = distribution_loss(
                rows[kept],
                matrix,
                wanted[batch.at(turn)[kept]],
                (own >= 0).to(rows.dtype),
                scale=1.0 if self.layout.form == "eagle3" else self.layout.model.logit_scale,
            )
            mean = loss.total / loss.count.clamp(min=1.0)
            if self.layout.form == "eagle2":
                near = functional.smooth_l1_loss(features[kept], states[batch.at(turn)[kept]])
                mean = STATES * near + TOKENS * mean
            total = total + LATER**turn * mean
            hits = torch.zeros(len(batch.rows), dtype=torch.bool)
            hits[kept] = best == own
            right.append(hits)
            nll = nll if turn else float(loss.nll / loss.count.clamp(min=1.0))
        whole = torch.stack(right, dim=1)[batch.within(self.turns - 1)]
        return Found(loss=total, right=whole.numpy(), nll=nll)

    @property
    def _matrix(self) -> Tensor:
        """The output matrix (tokens, width) of the head."""
        return self._seen("lm_head.weight").values() if self.layout.form == "eagle3" else self._rows

    @torch.no_grad()
    def _wanted(self, texts: Sequence[Shown]) -> tuple[Tensor, Tensor]:
        """At each answer's rows, but the last, what the model finds likely (rows, tokens), and its states."""
        config = self.layout.model
        last = config.num_hidden_layers
        parts = [_tensor(one.states[last])[one.start : len(one.ids) - 1] for one in texts]
        states = torch.cat(parts)
        logits = functional.linear(states, self._rows)
        return torch.softmax(logits.mul_(config.logit_scale), dim=-1), states


class _Batch:
    """Where the rows of texts lie. In the first turn each text has a row for each token but the last; those
    that go on (``rows``) are those behind which an answer has two tokens more."""

    def __init__(self, texts: Sequence[Shown]) -> None:
        sizes = [len(one.ids) - 1 for one in texts]
        self._first = [*accumulate(sizes, initial=0)]
        parts = [np.arange(one.start - 1, len(one.ids) - 2) for one in texts]
        self._places = torch.from_numpy(np.concatenate(parts))
        self._bounds = np.array([*accumulate(map(len, parts), initial=0)], np.int32)
        text = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
        self.rows = self._places + torch.tensor(self._first)[text]
        self._ids = [torch.from_numpy(one.ids.astype(np.int64)) for one in texts]
        self._all = torch.cat(self._ids)
        self._begin = torch.tensor([*accumulate((len(one.ids) for one in texts), initial=0)])[text]
        self._length = torch.tensor([len(one.ids) for one in texts])[text]
        answers = [*accumulate((len(one.ids) - 1 - one.start for one in texts), initial=0)]
        starts = torch.tensor([one.start for one in texts])
        self._answer = (torch.tensor(answers[:-1]) - starts)[text]

    def first(self, texts: Sequence[Shown], layers: int) -> Tensor:
        """States of the first turn's rows."""
        return torch.cat([_tensor(one.states[layers])[: len(one.ids) - 1] for one in texts])

    def within(self, turn: int) -> Tensor:
        """Of the rows that go on, those whose draft in this turn stands within the answer."""
        return self._places + 2 + turn < self._length

    def tokens(self, turn: int) -> Tensor:
        """The token that each of them is to find; past the answer its last one."""
        return self._all[self._begin + torch.minimum(self._places + 2 + turn, self._length - 1)]

    def at(self, turn: int) -> Tensor:
        """Which row of ``_wanted`` tells of that token; past the answer any."""
        return self._answer + torch.minimum(self._places + 1 + turn, self._length - 2)

    def step(self, turn: int, rotary: Rotary) -> tuple[Step, Any]:
        """The rows of a turn, and the token that follows each."""
        if turn == 0:
            positions = torch.cat([torch.arange(len(ids) - 1) for ids in self._ids])
            following, bounds = torch.cat([ids[1:] for ids in self._ids]), np.array(self._first, np.int32)
        else:
            positions, bounds = self._places + turn, self._bounds
            ahead = torch.minimum(self._places + 1 + turn, self._length - 1)
            following = self._all[self._begin + ahead]
        cos, sin = rotary.tables(int(positions.max()) + 1, torch.zeros(()))
        arrays: Any = {"ids": following, "positions": positions, "cu_rows": bounds, "cos": cos, "sin": sin}
        return Step(page_table=np.empty((0, 0), np.int32), **arrays), following


def first_values(layout: HeadLayout, source: OpenModel, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Parameters to begin with: those of the model's last layer and head, which know most of what the head is
    to learn; what they have no part for is noise, of ``seed`` and the parameter's name alone."""
    config, checkpoint, width = layout.model, source.checkpoint, layout.model.hidden_size
    prefix, own = f"model.layers.{config.num_hidden_layers - 1}.", layer_tensors(config)
    eagle3 = layout.form == "eagle3"
    for name, shape in layout.shapes().items():
        values = new_tensor(f"head.{name}", shape, seed, NOISE)
        part = name.removeprefix("midlayer." if eagle3 else "layers.0.")
        if name == "fc.weight":
            values[:, -width:] += torch.eye(width)  # the last state, or the model's beside the embedding
        elif name == "lm_head.weight":
            rows = _read(source, EMBED if config.tie_word_embeddings else HEAD)[
                layout.tokens.astype(np.int64)
            ]
            values = rows * config.logit_scale
        elif name == "norm.weight":
            values = _read(source, "model.norm.weight")
        elif part == "hidden_norm.weight":
            values = _read(source, f"{prefix}input_layernorm.weight")
        elif part in own and not (eagle3 and part == "input_layernorm.weight"):
            there = _read(source, prefix + part)
            if eagle3 and part.endswith(("o_proj.weight", "down_proj.weight")):
                there = there * config.residual_scale
            if there.shape == values.shape:
                values = there
            else:  # queries, keys and values read the embedding first
                values[:, width:] = there
        yield name, values.contiguous()
        if checkpoint.tensors.get(prefix + part) is not None:
            checkpoint.release(prefix + part)


def _read(source: OpenModel, name: str) -> Tensor:
    """A tensor of the model in float32, a copy."""
    stored = source.checkpoint
    matrix = len(stored.tensors[name].shape) == 2
    return torch.from_numpy(np.array(unpack(stored.load(name)) if matrix else stored.load_vector(name)))


def _target(source: OpenModel) -> ModelWeights:
    """Of the model what a head shares: embeddings, final norm and head."""
    config = source.config
    embed: Any = TorchMatrix(tensor=_read(source, EMBED))
    head: Any = embed if config.tie_word_embeddings else TorchMatrix(tensor=_read(source, HEAD))
    norm: Any = _read(source, "model.norm.weight")
    return ModelWeights(config=config, embed=embed, layers=(), norm=norm, head=head)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
