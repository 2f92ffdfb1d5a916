"""Keys and values of the first tokens of a text, as the original of a rounded model gives them (PrefixQuant,
arXiv 2410.05265).

The first tokens carry activations far larger than all others, and what follows leans on their keys; rounded
weights get these wrong. So a conversion may store them, beside the weights, for texts that begin with certain
tokens, as chats do. No token is added to a text. At position p the stored ones are used where the text's
first p + 1 tokens are the prefix's: that is known when the token runs, so it matters neither how work is cut
nor whether a text follows the prefix to its end.

The file is one of safetensors under a name of its own: other tools take every .safetensors for weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, UnsupportedError
from minicpm4.formats.safetensors import open_tensors
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.kernels.layer_weights import StoredKV
from minicpm4.model.rotary import inverse_frequencies

__all__ = [
    "FILE",
    "MOST",
    "StoredPrefix",
    "common_length",
    "fixed_angles",
    "read_stored",
    "refuse_stored",
    "stored_nbytes",
    "write_stored",
]

FILE = "stored_prefix.kv"
MOST = 64  # tokens
_REMEDY = f"remove {FILE} to run without it, or convert the original again"

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredPrefix:
    """Of the tokens ``ids``, the first of a text, ``keys`` (rotated) and ``values`` (layers, n, hkv, d)."""

    ids: tuple[int, ...]
    keys: Floats
    values: Floats

    def layer(self, index: int) -> StoredKV:
        """Those of one layer: views."""
        return StoredKV(keys=self.keys[index], values=self.values[index])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        parts = repr(self.ids).encode(), self.keys.tobytes(), self.values.tobytes()
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def same(self, other: StoredPrefix | None) -> bool:
        """Whether ``other`` is the same, bit by bit."""
        return other is not None and self.digest == other.digest


def stored_nbytes(config: ModelConfig, tokens: int) -> int:
    """Bytes that keys and values of so many tokens take in all layers."""
    return 8 * config.num_hidden_layers * tokens * config.num_key_value_heads * config.head_dim


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(one), len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)


def fixed_angles(config: ModelConfig) -> Floats:
    """The inverse frequencies of rotary positions and, last, their factor (d / 2 + 1,): stored keys are
    turned by them. Raises UnsupportedError where they change with the length of a context."""
    scaling = config.rope_scaling
    if scaling is not None and (
        scaling.rope_type == "dynamic"
        or (scaling.rope_type == "longrope" and scaling.long_factor != scaling.short_factor)
    ):
        raise UnsupportedError(
            f"rotary positions of {scaling.rope_type} are others in a longer context: keys that are stored "
            "would not be those of the model",
            "convert without --stored-prefix",
        )
    inverse, factor = inverse_frequencies(config, config.max_position_embeddings)
    return np.append(inverse, factor).astype(np.float32)


def refuse_stored(stored: StoredPrefix | None, name: str, who: str) -> None:
    """Raise UnsupportedError unless ``stored``, of the model ``name``, is None: ``who`` knows no such."""
    if stored is not None:
        raise UnsupportedError(
            f"{name} has a stored prefix of {len(stored.ids)} tokens, which {who} cannot take along",
            f"use the model that it was made of, or a copy without {FILE}",
        )


def write_stored(folder: Path, stored: StoredPrefix, config: ModelConfig) -> None:
    """Write it into the model folder ``folder``. Raises OSError, UnsupportedError."""
    tensors = {
        "ids": np.array(stored.ids, np.int32),
        "angles": fixed_angles(config),
        "keys": stored.keys,
        "values": stored.values,
    }
    kinds = {np.dtype(np.int32): "I32", np.dtype(np.float32): "F32"}
    sources = {
        name: TensorSource(shape=one.shape, dtype=kinds[one.dtype], make=lambda one=one: one)  # type: ignore[misc]
        for name, one in tensors.items()
    }
    write_safetensors(folder / FILE, sources)


def read_stored(folder: Path, config: ModelConfig) -> StoredPrefix | None:
    """The stored prefix of the model of ``config`` in ``folder``; None: it has none. Raises CheckpointError,
    UnsupportedError for what does not fit the model."""
    file = folder / FILE
    if not file.is_file():
        return None
    found = open_tensors(file)
    if found.keys() != {"ids", "angles", "keys", "values"}:
        raise CheckpointError(
            f"{file} holds {', '.join(sorted(found))[:200]}, it is no stored prefix", _REMEDY
        )
    shape = found["ids"].shape
    if len(shape) != 1 or not 0 < shape[0] <= MOST:
        raise CheckpointError(f"{file} is of tokens {shape}, it may be of 1 to {MOST}", _REMEDY)
    kv = (config.num_hidden_layers, shape[0], config.num_key_value_heads, config.head_dim)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {"keys": ("F32", kv), "values": ("F32", kv)}
    wanted |= {"ids": ("I32", shape), "angles": ("F32", (config.head_dim // 2 + 1,))}
    for name, one in found.items():
        if (one.entry.dtype, one.shape) != wanted[name]:
            raise CheckpointError(
                f"{file}: {name} is {one.entry.dtype} {one.shape}, the model asks for {wanted[name]}", _REMEDY
            )
    arrays = {name: np.array(one.view()) for name, one in found.items()}
    ids = tuple(arrays["ids"].tolist())
    if not all(0 <= one < config.vocab_size for one in ids):
        raise CheckpointError(f"{file} names a token that the model has not", _REMEDY)
    if not all(np.isfinite(arrays[name]).all() for name in ("keys", "values")):
        raise CheckpointError(f"{file} holds a value that is not finite", _REMEDY)
    if not np.allclose(arrays["angles"], fixed_angles(config), rtol=1e-5, atol=0):
        raise CheckpointError(f"{file} was made with other rotary positions than config.json has", _REMEDY)
    return StoredPrefix(ids=ids, keys=arrays["keys"], values=arrays["values"])
