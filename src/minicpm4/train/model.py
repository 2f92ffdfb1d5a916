"""The torch view of a model's weights: parameters under a checkpoint's names, run by the one forward.

``state_dict()`` has exactly the names of the checkpoint. How the forward sees the parameters (rounded, in
FP8, with low-rank additions), what attention reads and whether activations are computed again for the
backward is the Mode, a value that stages of training change; the parameters stay.

Every layer is a module, called as one (``DecoderLayer.forward``), and reads its parameters only then:
FSDP2's ``fully_shard`` on the layers, then on the model, gathers each when it is needed. Final norm,
embeddings and head belong to the root.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.errors import ConfigError
from minicpm4.formats import QuantSpec
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.formats.packing import unpack
from minicpm4.kernels.autograd import LowRank, TorchCache, TorchMatrix, TorchOps
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Step
from minicpm4.model import forward as decoder
from minicpm4.model.rotary import RotaryTable
from minicpm4.model.source import open_model
from minicpm4.model.weights import LayerWeights, ModelWeights, build_layer
from minicpm4.train.loss import LossSum, next_token_loss
from minicpm4.train.stages import check_rounding, spec_of

__all__ = [
    "DecoderLayer",
    "Mode",
    "Packed",
    "Rotary",
    "TrainableModel",
    "fresh_tensors",
    "meta_tensors",
    "new_tensor",
    "plant",
    "stored_tensors",
]

Init = Callable[[str, ModelConfig], float]
See = Callable[[str, Tensor], TorchMatrix]
_SHARED = (EMBED, HEAD)


class Packed(Protocol):
    """A batch of whole documents, one after another (``data/batch.py``): arrays or tensors of n rows;
    document j owns rows cu_rows[j] to cu_rows[j + 1] - 1."""

    @property
    def ids(self) -> Any: ...
    @property
    def positions(self) -> Any: ...
    @property
    def cu_rows(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """How a model is run.

    ``rounding``: formats by name pattern, shell style, of the matrix's name or its end ("self_attn.*",
    "mlp.*"); the first that fits counts; embeddings and head are rounded only if a pattern spells their
    name. ``fp8``: products of the layers' projections in FP8. ``sparse``: None is dense attention.
    ``recompute``: keep only each layer's input for the backward.
    """

    rounding: Mapping[str, QuantSpec] = field(default_factory=dict)
    fp8: bool = False
    sparse: SparseConfig | None = None
    recompute: bool = False


class DecoderLayer(nn.Module):
    """One layer's parameters, from ``tensors`` by name; ``prefix`` comes before their names in the model."""

    def __init__(self, config: ModelConfig, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.prefix = config, prefix
        self._biased = frozenset(name for name in tensors if name.endswith(".bias"))
        for name, tensor in tensors.items():
            plant(self, name, tensor)

    def weights(self, see: See) -> LayerWeights:
        """The layer for the forward; ``see`` makes a TorchMatrix of a name and a parameter."""
        return build_layer(
            self.config, "", lambda name: _get(self, name), lambda name: self._linear(name, see)
        )

    def _linear(self, name: str, see: See) -> Linear:
        matrix: Any = see(f"{self.prefix}{name}.weight", _get(self, name + ".weight"))
        bias = name + ".bias"
        return Linear(weight=matrix, bias=_get(self, bias) if bias in self._biased else None)

    def forward(self, x: Tensor, compute: decoder.Compute, see: See, recompute: bool) -> Tensor:
        """Return ``compute(weights, x)``, x (n, hidden) after this layer."""

        def run(x: Any) -> Any:
            return compute(self.weights(see), x)

        if recompute and torch.is_grad_enabled():
            # There is no randomness in a layer, so that no state of it has to be put back.
            return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return run(x)


class TrainableModel(nn.Module):
    """A decoder whose parameters are ``tensors``, by the names of ``expected_tensors(config)``; float32
    masters.

    ``low_rank``: additions by matrix name; who puts them there owns their parameters. Raises ConfigError.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], mode: Mode | None = None) -> None:
        super().__init__()
        self._config = config
        self._rotary = Rotary(config)
        self.ops = TorchOps()
        self.low_rank: dict[str, LowRank] = {}
        self._layers: list[DecoderLayer] = []
        layers = nn.ModuleList()
        plant(self, EMBED, tensors[EMBED])
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            layers.append(DecoderLayer(config, prefix, own))
            self._layers.append(layers[-1])  # type: ignore[arg-type]
        _get(self, "model").add_module("layers", layers)
        plant(self, "model.norm.weight", tensors["model.norm.weight"])
        if not config.tie_word_embeddings:
            plant(self, HEAD, tensors[HEAD])
        self.mode = mode or Mode()

    @classmethod
    def new(
        cls, config: ModelConfig, seed: int, init: Init | None = None, mode: Mode | None = None
    ) -> TrainableModel:
        """A model of fresh parameters: ``init(name, config)`` is a matrix's standard deviation (default
        0.02), norms are 1, biases 0. A tensor depends on ``seed`` and its name alone."""
        return cls(config, dict(fresh_tensors(config, seed, init)), mode)

    @classmethod
    def load(cls, path: str | Path, mode: Mode | None = None) -> TrainableModel:
        """The model at ``path`` (whatever the engine loads: a folder, a .gguf file, a known name), in
        float32.

        Raises ModelNotFoundError, CheckpointError, ConfigError.
        """
        config, tensors = stored_tensors(path)
        return cls(config, dict(tensors), mode)

    @classmethod
    def without_values(cls, config: ModelConfig) -> TrainableModel:
        """A model of shapes alone, on torch's meta device: to be sharded before its tensors are made, one
        at a time."""
        return cls(config, meta_tensors(expected_tensors(config)))

    @property
    def config(self) -> ModelConfig:
        """Assign a changed one (rotary scaling, context) between stages; its tensors must have the same
        shapes."""
        return self._config

    @config.setter
    def config(self, config: ModelConfig) -> None:
        if expected_tensors(config) != expected_tensors(self._config):
            raise ConfigError("the new configuration has other tensors than the model", "make a new model")
        self._config, self._rotary = config, Rotary(config)
        for layer in self._layers:
            layer.config = config

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        check_rounding(expected_tensors(self._config), mode.rounding)
        self._mode = mode

    @property
    def layers(self) -> tuple[DecoderLayer, ...]:
        return tuple(self._layers)

    @property
    def device(self) -> torch.device:
        return self._parameter(EMBED).device

    def matrix(self, name: str, tensor: Tensor) -> TorchMatrix:
        """How the forward sees matrix ``name``, whose parameter is ``tensor``."""
        mode = self._mode
        return TorchMatrix(
            tensor=tensor,
            fake=spec_of(name, mode.rounding),
            fp8=mode.fp8 and name not in _SHARED,
            low_rank=self.low_rank.get(name),
        )

    def weights(self) -> ModelWeights:
        """The weight tree for the forward, of TorchMatrix. Under FSDP2 its matrices are whole only while
        they are used."""
        embed: Any = self.matrix(EMBED, self._parameter(EMBED))
        tied = self._config.tie_word_embeddings
        head: Any = embed if tied else self.matrix(HEAD, self._parameter(HEAD))
        norm: Any = self._parameter("model.norm.weight")
        layers = tuple(layer.weights(self.matrix) for layer in self._layers)
        return ModelWeights(config=self._config, embed=embed, layers=layers, norm=norm, head=head)

    def head(self) -> Tensor:
        """The output matrix (vocab, hidden) that the forward sees, for ``train/loss.py``."""
        name = EMBED if self._config.tie_word_embeddings else HEAD
        return self.matrix(name, self._parameter(name)).values()

    def step(self, batch: Packed) -> Step:
        """The rows of ``batch`` as tensors on this model's device, with their rotary table."""
        positions = np.asarray(batch.positions)
        like = self._parameter(EMBED)
        cos, sin = self._rotary.tables(int(positions.max(initial=0)) + 1, like)
        arrays: Any = {
            "ids": as_tensor(batch.ids, like.device),
            "positions": as_tensor(positions, like.device),
            "cu_rows": np.asarray(batch.cu_rows),
            "page_table": np.empty((0, 0), np.int32),
            "cos": cos,
            "sin": sin,
        }
        return Step(sparse=self._mode.sparse, **arrays)

    def cache(self) -> TorchCache:
        """Keys and values of one step."""
        config = self._config
        return TorchCache(config.num_key_value_heads, config.head_dim, config.windows)

    def forward(self, batch: Packed) -> Tensor:
        """Return the final hidden states (n, hidden) of a batch."""
        hidden: Any = decoder.forward(self.ops, self.weights(), self.step(batch), self.cache(), run=self._run)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (rows, vocab) of final hidden states (rows, hidden)."""
        given: Any = hidden
        return torch.as_tensor(decoder.logits(self.ops, self.weights(), given))

    def loss(self, hidden: Tensor, targets: Any, weight: Any, z_loss: float) -> LossSum:
        """Loss of ``hidden`` (n, hidden), its own or an extra head's, against ``targets`` (n,), rows weighed
        by ``weight`` (n,) (None: alike)."""
        place = hidden.device
        return next_token_loss(
            hidden,
            self.head(),
            as_tensor(targets, place),
            scale=self._config.logit_scale,
            weight=None if weight is None else as_tensor(weight, place),
            z_loss=z_loss,
        )

    def _run(self, index: int, compute: decoder.Compute, layer: LayerWeights, x: Any) -> Any:
        # The module reads its parameters itself: under FSDP2 they are not there before it is called.
        return self._layers[index](x, compute, self.matrix, self._mode.recompute)

    def _parameter(self, name: str) -> Tensor:
        return _get(self, name)


class Rotary:
    """The rotary table of a configuration, as tensors. The context is what the model is made for."""

    def __init__(self, config: ModelConfig) -> None:
        self._table = RotaryTable(config, config.max_position_embeddings)
        self._held: tuple[Tensor, Tensor] | None = None

    def tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (at least ``length``, d / 2), of ``like``'s device and type."""
        held = self._held
        same = held is not None and held[0].device == like.device and held[0].dtype == like.dtype
        if held is None or not same or len(held[0]) < length:
            cos, sin = (torch.from_numpy(x.copy()) for x in self._table.tables(length))
            self._held = held = cos.to(like), sin.to(like)
        return held


def fresh_tensors(config: ModelConfig, seed: int, init: Init | None = None) -> Iterator[tuple[str, Tensor]]:
    """The parameters of ``TrainableModel.new`` one after another: held by who takes them, by nobody else."""
    std = init or (lambda name, config: 0.02)
    for name, shape in expected_tensors(config).items():
        yield name, new_tensor(name, shape, seed, std(name, config))


def stored_tensors(
    path: str | Path, ignore_fields: Collection[str] = ()
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """The configuration and, one after another, the parameters of ``TrainableModel.load``; ``ignore_fields``
    as for ``open_model``."""
    found = open_model(path, ignore_fields)
    found.refuse_stored("a training run")
    source, config = found.checkpoint, found.config

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in expected_tensors(config).items():
            values = unpack(source.load(name)) if len(shape) == 2 else np.array(source.load_vector(name))
            yield name, torch.from_numpy(values)
            source.release(name)

    return config, tensors()


def meta_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Float32 tensors of ``shapes`` that hold nothing."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def new_tensor(name: str, shape: tuple[int, ...], seed: int, std: float) -> Tensor:
    """A fresh parameter: norms 1, biases 0, matrices normal with deviation ``std``; of ``seed`` and
    ``name`` alone."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    mixed = (seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % (1 << 63)
    return torch.empty(shape).normal_(0.0, std, generator=torch.Generator().manual_seed(mixed))


def as_tensor(array: Any, device: torch.device) -> Tensor:
    """``array`` as a tensor on ``device``; NumPy arrays are copied, for they may be read-only."""
    found = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    return found.to(device)


def plant(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Make ``tensor`` the parameter ``name`` of ``root``, with the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(leaf, nn.Parameter(tensor))


def _get(root: nn.Module, name: str) -> Any:
    return attrgetter(name)(root)
