"""What every extra head is to the trainer: parameters, hidden states, a loss, a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from minicpm4.config import ModelConfig
from minicpm4.data.batch import Batch
from minicpm4.errors import CheckpointError
from minicpm4.files import write_json
from minicpm4.train.head_plan import HeadPlan
from minicpm4.train.loss import LossSum
from minicpm4.train.model import Init, Packed, TrainableModel, meta_tensors, new_tensor
from minicpm4.train.tensor_files import write_file

__all__ = ["ExtraHead"]


class ExtraHead(nn.Module, ABC):
    """A head for models of ``config``; ``tensors`` by the names of ``plan.shapes(config)``, which
    ``state_dict`` has again."""

    plan: ClassVar[HeadPlan]

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, model: TrainableModel, batch: Packed, hidden: Tensor) -> Tensor:
        """Return its hidden states (n, width) from ``hidden`` (n, width), what ``model(batch)`` returned."""

    @abstractmethod
    def targets(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The token (n,) that each row is to find, -1: none; and the weights (n,) of rows (None: all 1).
        Their sum over all batches of a step divides its loss."""

    def loss(
        self,
        model: TrainableModel,
        batch: Packed,
        hidden: Tensor,
        targets: tuple[Tensor, Tensor | None],
        z_loss: float,
    ) -> LossSum:
        """Loss of a batch: of the tokens that the model's head finds in its hidden states."""
        return model.loss(self(model, batch, hidden), *targets, z_loss)

    @classmethod
    def new(cls, config: ModelConfig, seed: int, init: Init | None = None) -> Self:
        """Fresh parameters, as TrainableModel.new makes them. ``init`` sees the optimiser's names
        (mtp.layers.0.mlp.up_proj.weight)."""
        return cls(config, dict(cls.fresh(config, seed, init)))

    @classmethod
    def without_values(cls, config: ModelConfig) -> Self:
        """Shapes alone, as TrainableModel.without_values."""
        return cls(config, meta_tensors(cls.plan.shapes(config)))

    @classmethod
    def fresh(cls, config: ModelConfig, seed: int, init: Init | None = None) -> Iterator[tuple[str, Tensor]]:
        """The parameters of ``new``, one after another."""
        std = init or (lambda name, config: 0.02)
        for name, shape in cls.plan.shapes(config).items():
            full = f"{cls.plan.name}.{name}"
            yield name, new_tensor(full, shape, seed, std(full, config))

    @classmethod
    def write(cls, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        """Write config.json and ``tensors``, float32, each whole or not at all. Raises CheckpointError."""
        own: dict[str, Any] = {n: tensor.detach().cpu().contiguous() for n, tensor in tensors.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / "model.safetensors", own)
            write_json(folder / "config.json", cls.plan.config(config), indent=2, durable=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {folder}: {error.strerror or error}", "check the place and its free space"
            ) from error
