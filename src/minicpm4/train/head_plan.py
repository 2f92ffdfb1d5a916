"""Extra heads, as far as they are known without torch: what the trainer, the estimate and a dry run all read.

An extra head is trained beside a model, on its final hidden states; later it drafts. To add one: its forward
in ``model/`` (as ``draft.py``), a plan here, its class (``train/extra_head.py``) with a line in
``train/session.py``, and the key of a stage that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.model.draft import draft_config, draft_shapes
from minicpm4.train.recipe import Stage

__all__ = ["HEADS", "MULTI_TOKEN", "HeadPlan", "heads_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """``name``: of its folder in a checkpoint, and with a dot before its parameters' names, by which
    optimiser and muP know them: matrices under ``layers.`` are a layer's (muP's factors, Muon), the others
    are as embeddings are.

    ``shapes`` of its tensors, and the content of its config.json, for a model's configuration. ``factor``:
    what a stage multiplies its loss by (0: the stage does not train it). For estimates: ``layers`` of the
    model's kind that it runs, under such names, and how many ``norms`` of the hidden states beside them.
    """

    name: str
    shapes: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]]
    config: Callable[[ModelConfig], dict[str, Any]]
    factor: Callable[[Stage], float]
    layers: int
    norms: int

    def trained(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape of its parameters, by the names that the optimiser knows."""
        return {f"{self.name}.{name}": shape for name, shape in self.shapes(config).items()}


MULTI_TOKEN = HeadPlan(
    name="mtp",
    shapes=draft_shapes,
    config=draft_config,
    factor=lambda stage: stage.mtp,
    layers=1,
    norms=3,  # of embeddings, of hidden states, and the final one again
)
HEADS = (MULTI_TOKEN,)


def heads_of(stages: Iterable[Stage]) -> tuple[HeadPlan, ...]:
    """The heads that any of ``stages`` trains."""
    asked = list(stages)
    return tuple(head for head in HEADS if any(head.factor(stage) for stage in asked))
