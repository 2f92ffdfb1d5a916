"""Heads that draft, from their folders: which layout it is, whether it fits its model, its weights.

Three layouts, told apart by config.json and the tensors: multi-token prediction of our own training
(``final_norm``: "target"), EAGLE-2 beside MiniCPM4 as CPM.cu and vLLM hold it (``fc.weight`` [hidden, 2
hidden]), EAGLE-3 (``fc.weight`` [hidden, 3 hidden], ``midlayer.*``, a head of its own). What does not fit the
model is refused by name; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.config.model import read_hf_config
from minicpm4.config.strict import check_scalar, shown
from minicpm4.errors import CheckpointError, ConfigError, UnsupportedError
from minicpm4.formats.packing import packed_if_exact, unpack
from minicpm4.formats.safetensors import StoredTensor, open_tensors, stored_matrix
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Floats, Ints
from minicpm4.model.draft import DraftWeights, build_draft, draft_shapes, residual_scale, shared_config
from minicpm4.model.head_layout import build_eagle3, eagle3_shapes, usual_states
from minicpm4.model.heads import Eagle3Head, Eagle3Weights, Head, StateHead
from minicpm4.model.ranks import FewTokens
from minicpm4.model.weights import ModelWeights

__all__ = ["HeadFile", "HeadPlan", "plan_head", "read_draft"]

FILE = "model.safetensors"
_SHARED = ("embed_tokens.weight", "lm_head.weight")  # which EAGLE-2 takes from its model, and files repeat
_EAGLE2 = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "rope_theta",
    "rms_norm_eps",
)


class HeadFile:
    """A head's folder: ``raw``, its config.json, and ``tensors`` by the names that both layouts share.

    Raises CheckpointError, ConfigError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / FILE).is_file():
            kept = sorted(one.name for one in folder.glob("*.bin")) if folder.is_dir() else []
            held = f", but {kept[0]}, which would be unpickled" if kept else ""
            raise CheckpointError(
                f"{folder} holds no {FILE}{held}", "give the folder of a head, as safetensors"
            )
        self.raw = read_hf_config(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for name, tensor in open_tensors(folder / FILE).items():
            self.tensors[name.removeprefix("model.").replace("eagle_layers.", "layers.")] = tensor
        quantised = next((name for name in self.tensors if name.endswith(".qweight")), None)
        if quantised is not None:
            raise UnsupportedError(
                f"the head in {folder} is quantised ({quantised})", "use the one that it was made from"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.entry.nbytes for tensor in self.tensors.values())

    @property
    def kind(self) -> str:
        """Which layout it has: "mtp", "eagle2" or "eagle3"."""
        if self.raw.get("final_norm") == "target":
            return "mtp"
        return "eagle3" if any(name.startswith("midlayer.") for name in self.tensors) else "eagle2"

    def check(self, shapes: Mapping[str, tuple[int, ...]], spare: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless it has these tensors, and no others but ``spare``."""
        for name in sorted(shapes.keys() | self.tensors.keys()):
            found = self.tensors[name].shape if name in self.tensors else "missing"
            wanted = {**spare, **shapes}.get(name, "no such tensor")
            if found != wanted:
                raise self.foreign(f"{name} in {self.folder} is {found}, the model asks for {wanted}")

    def check_config(self, wanted: Mapping[str, Any], *, whole: bool = False) -> None:
        """Raise CheckpointError where config.json says something else than ``wanted``, or (``whole``) does
        not say it."""
        for name, value in wanted.items():
            found = self.raw.get(name)
            if found != value and (whole or found is not None):
                said = f"config.json in {self.folder} has {name} = {shown(found)}, the model {value!r}"
                raise self.foreign(said)

    def number(self, name: str, default: int) -> int:
        """A size of config.json. Raises ConfigError."""
        found = default if self.raw.get(name) is None else self.raw[name]
        if type(found) is not int or not 0 < found < 1 << 31:
            raise ConfigError(f"config.json in {self.folder} has {name} = {found!r:.60}, no size")
        return found

    def real(self, name: str, default: float) -> float:
        """A number of config.json. Raises ConfigError."""
        found = default if self.raw.get(name) is None else self.raw[name]
        return float(check_scalar(found, float, f"config.json in {self.folder}: {name}"))

    def vector(self, name: str) -> Floats:
        """A tensor of one dimension as float32."""
        stored = self.tensors[name]
        found = unpack(stored_matrix(stored, name, (1, math.prod(stored.shape))))[0]
        if not np.isfinite(found).all():
            raise CheckpointError(f"{self.folder}: tensor {name} holds a value that is not finite")
        return found

    def linear(self, name: str, ops: OpTable) -> Linear:
        """A matrix as ``ops`` reads it, with the bias that there is; one that was trained rounded, packed."""
        stored = self.tensors[f"{name}.weight"]
        matrix = stored_matrix(stored, f"{name}.weight", (stored.shape[0], stored.shape[1]))
        bias = self.vector(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return Linear(weight=ops.prepare(packed_if_exact(matrix)), bias=bias)

    def integers(self, name: str) -> NDArray[Any]:
        """A tensor of whole numbers or truth values, as stored."""
        return np.array(self.tensors[name].view())

    def foreign(self, condition: str) -> CheckpointError:
        return CheckpointError(condition, "use a head that was trained with this model")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPlan:
    """A head that fits its model, its weights still in the file. ``kind``: "mtp", "eagle2" or "eagle3";
    ``config`` of its layer; ``hidden``: after how many of the model's layers it wants states."""

    file: HeadFile
    kind: str
    config: ModelConfig
    hidden: tuple[int, ...]

    def read(self, weights: ModelWeights, ops: OpTable, few: FewTokens | None = None) -> Head:
        """Its weights, beside the model's; ``few``: of whose head it takes these rows alone. Raises
        CheckpointError, UnsupportedError, ConfigError."""
        own: dict[str, Any] = {"ops": ops, "weights": weights, "config": self.config, "hidden": self.hidden}
        if self.kind == "mtp":
            return StateHead(**own, few=few, layer=read_draft(self.file, weights.config, ops))
        if self.kind == "eagle2":
            return StateHead(**own, few=few, layer=_eagle2(self.file, weights.config, self.config, ops))
        return Eagle3Head(**own, own=self._eagle3(ops), tokens=_tokens(self.file))

    def _eagle3(self, ops: OpTable) -> Eagle3Weights:
        return build_eagle3(self.config, self.file.vector, lambda name: self.file.linear(name, ops))


def plan_head(folder: Path, config: ModelConfig, window: int) -> HeadPlan:
    """Open the head in ``folder`` for a model of ``config``; it is to read the last ``window`` tokens.

    Raises CheckpointError for one of another model, UnsupportedError for a kind that cannot be run,
    ConfigError.
    """
    file = HeadFile(folder)
    own = replace(config, num_hidden_layers=1, windows=(window,), sparse_config=None)
    last = (config.num_hidden_layers,)
    if file.kind == "mtp":
        file.check_config(shared_config(config), whole=True)
        file.check(draft_shapes(config), {})
        return HeadPlan(file=file, kind="mtp", config=own, hidden=last)
    if file.kind == "eagle2":
        file.check_config({name: getattr(config, name) for name in _EAGLE2})
        own = replace(own, intermediate_size=file.number("intermediate_size", config.intermediate_size))
        whole = (config.vocab_size, config.hidden_size)
        file.check(draft_shapes(own), {**dict.fromkeys(_SHARED, whole), "fc.bias": (config.hidden_size,)})
        return HeadPlan(file=file, kind="eagle2", config=own, hidden=last)
    own = _eagle3_config(file, config, own)
    tokens = file.number("draft_vocab_size", config.vocab_size)
    spare = {"embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    maps = {"d2t": (tokens,), "t2d": (config.vocab_size,)}
    file.check({**eagle3_shapes(own, tokens), **maps}, spare)
    _tokens(file)
    return HeadPlan(file=file, kind="eagle3", config=own, hidden=_captured(file, config.num_hidden_layers))


def read_draft(file: HeadFile, config: ModelConfig, ops: OpTable) -> DraftWeights:
    """The draft layer in a file that was checked, for ``ops`` and a model of ``config``."""
    return build_draft(config, file.vector, lambda name: file.linear(name, ops))


def _eagle2(file: HeadFile, model: ModelConfig, own: ModelConfig, ops: OpTable) -> DraftWeights:
    made = read_draft(file, own, ops)
    # vLLM takes mup_denominator where a head says it, CPM.cu a layer more than the model has.
    scale = residual_scale(model)
    if model.residual_scale != 1.0 and file.raw.get("mup_denominator") is not None:
        scale = model.scale_depth / math.sqrt(file.number("mup_denominator", 1))
    return replace(made, residual=scale, final_norm=False)


def _eagle3_config(file: HeadFile, model: ModelConfig, own: ModelConfig) -> ModelConfig:
    """The configuration of its layer, which is its own but for the width."""
    file.check_config({"vocab_size": model.vocab_size, "hidden_size": model.hidden_size})
    if file.raw.get("rope_scaling") is not None:
        raise UnsupportedError(
            f"the head in {file.folder} scales its rotary angles (rope_scaling)", "use one that does not"
        )
    heads = file.number("num_attention_heads", model.num_attention_heads)
    return replace(
        own,
        intermediate_size=file.number("intermediate_size", model.intermediate_size),
        num_attention_heads=heads,
        num_key_value_heads=file.number("num_key_value_heads", heads),
        head_dim=file.number("head_dim", model.hidden_size // heads),
        rms_norm_eps=file.real("rms_norm_eps", 1e-6),
        rope_theta=file.real("rope_theta", 10000.0),
        rope_scaling=None,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


def _captured(file: HeadFile, layers: int) -> tuple[int, ...]:
    """After how many layers the three states are taken. By default those that *enter* layers 2, L / 2 and L -
    3. A list in ``eagle_config`` (SpecForge, SGLang) names layers whose *outputs* they are; one at the top
    (vLLM, speculators) layers that they enter."""
    table = file.raw.get("eagle_config")
    nested = table.get("eagle_aux_hidden_state_layer_ids") if isinstance(table, dict) else None
    top = file.raw.get("eagle_aux_hidden_state_layer_ids")
    found = usual_states(layers)
    if nested is not None:
        found = tuple(one + 1 for one in _three(file, nested))
    elif top is not None:
        found = tuple(_three(file, top))
    if not all(0 <= one < layers for one in found):
        raise file.foreign(
            f"the head in {file.folder} reads states after {found} layers, the model has {layers}"
        )
    return found


def _three(file: HeadFile, given: Any) -> list[int]:
    right = isinstance(given, list) and len(given) == 3 and all(type(one) is int for one in given)
    if not right:
        name = "eagle_aux_hidden_state_layer_ids"
        raise ConfigError(f"config.json in {file.folder} has {name} = {given!r:.60}, not three layers")
    return list(given)


def _tokens(file: HeadFile) -> Ints:
    """The model's token of each of the head's: its number plus ``d2t``, and ``t2d`` marks the same ones."""
    offsets = file.integers("d2t").astype(np.int64)
    found = np.arange(len(offsets)) + offsets
    marked = np.flatnonzero(file.integers("t2d")).astype(np.int64)
    if not np.array_equal(np.sort(found), marked):
        digest, other = (hashlib.sha256(one.tobytes()).hexdigest()[:12] for one in (np.sort(found), marked))
        raise file.foreign(f"d2t in {file.folder} leads to other tokens ({digest}) than t2d marks ({other})")
    return found.astype(np.int32)
