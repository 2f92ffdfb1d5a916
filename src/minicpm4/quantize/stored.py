"""A stored prefix (model/stored_prefix.py) for a model that is made small: its tokens, what the original
makes of them, and where it is kept until all layers are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.errors import CheckpointError, Minicpm4Error
from minicpm4.formats import Checkpoint
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import StoredKV
from minicpm4.model.stored_prefix import MOST, StoredPrefix, common_length, fixed_angles
from minicpm4.quantize.layer import looked_up, read_layer
from minicpm4.quantize.rotate import Rotation
from minicpm4.quantize.walk import Walk, as_floats
from minicpm4.text.model_text import ModelText
from minicpm4.text.probes import ASKED, SAID

__all__ = ["AUTO", "is_stored", "original_prefix", "prefix_ids", "stored_of", "stored_tensors"]

AUTO = "auto"
"""What the chat template puts before any chat."""
_PARTS = ("keys", "values")


def prefix_ids(text: ModelText, said: str, vocab_size: int) -> tuple[int, ...]:
    """The tokens of ``said``, as a text of the model's begins with them; ``AUTO``: of the chat template.
    Raises ConfigError where there are none, or too many."""
    ids = _of_chats(text)[:MOST] if said == AUTO else text.encode(said)
    other = "give the text with which yours begin: --stored-prefix TEXT"
    require(bool(ids), f"--stored-prefix {said!r:.60} has no token", other)
    require(len(ids) <= MOST, f"--stored-prefix has {len(ids)} tokens, it may have {MOST}", "give less text")
    require(max(ids) < vocab_size, f"--stored-prefix has token {max(ids)}, which the model has not", other)
    return tuple(ids)


def _of_chats(text: ModelText) -> list[int]:
    """What chats begin with, whoever begins and whatever is said."""
    system, *users = ({"role": role, "content": word} for role, word in _TURNS)
    found = []
    for chat in ([system, users[0]], [users[0]], [users[1]]):
        try:
            found.append(text.encode_chat(chat))
        except Minicpm4Error:  # some templates know no system
            continue
    if len(found) < 2:
        return []
    return found[0][: min(common_length(found[0], one) for one in found[1:])]


_TURNS = (("system", SAID), ("user", ASKED), ("user", SAID))


def original_prefix(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ids: Sequence[int],
    rotation: Rotation | None,
    ops: OpTable,
) -> StoredPrefix | None:
    """What the weights of ``checkpoint`` make of ``ids``, the first tokens of a text, values turned as
    ``rotation`` turns them; None where there are no ``ids``. Memory: a layer in float32, and what is found.
    Raises CheckpointError, UnsupportedError."""
    if not ids:
        return None
    fixed_angles(config)
    rows, texts = looked_up(checkpoint, [ids])
    walk, found = Walk(ops, config, as_floats(rows), texts), []
    for index in range(config.num_hidden_layers):
        layer = read_layer(checkpoint, config, index).weights()
        found.append(walk.keys_and_values(index, layer))
        walk.advance(index, layer)
    keys, values = (np.stack([getattr(one, part) for one in found]) for part in _PARTS)
    return StoredPrefix(
        ids=tuple(ids), keys=keys, values=values if rotation is None else rotation.stored(values)
    )


def _name(index: int, part: str) -> str:
    return f"model.layers.{index}.stored.{part}"


def is_stored(name: str) -> bool:
    """Whether a tensor of a layer's file is of the stored prefix."""
    return name.rpartition(".")[0].endswith(".stored")


def stored_tensors(stored: StoredKV, index: int) -> dict[str, PackedTensor]:
    """What is stored of a layer, as tensors beside its own."""
    return {_name(index, part): as_floats(_flat(getattr(stored, part))) for part in _PARTS}


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def stored_of(tensors: Mapping[str, PackedTensor], config: ModelConfig) -> StoredKV | None:
    """The same, read again; None: there is none. Raises CheckpointError."""
    found = {name.rpartition(".")[2]: one.codes for name, one in tensors.items() if is_stored(name)}
    if not found:
        return None
    shape = (-1, config.num_key_value_heads, config.head_dim)
    if found.keys() != {*_PARTS} or len({one.shape for one in found.values()}) > 1:
        raise CheckpointError("half of a stored prefix is missing", "remove the folder")
    if any(one.dtype != np.float32 or one.shape[1] != shape[1] * shape[2] for one in found.values()):
        raise CheckpointError("what is kept of a stored prefix is of another model", "remove the folder")
    return StoredKV(**{part: found[part].reshape(shape) for part in _PARTS})
