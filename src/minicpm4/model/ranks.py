"""A draft head of fewer tokens: the model's, or a smaller model's, cut to what is frequent (FR-Spec, arXiv
2502.14856).

Drafting needs few tokens often, and its head is most of what a guess costs. Which tokens are frequent is
counted once over some text (``minicpm4 spec rank``) and kept in a file, with a hash of the vocabulary that it
was counted in. What the model itself may write stays as it is: only guesses are among fewer tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError, ConfigError, UnsupportedError
from minicpm4.files import read_json, write_json
from minicpm4.formats import Checkpoint
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.step import Ints
from minicpm4.model.weight_plan import MatrixPlan, WeightPlan
from minicpm4.model.weight_set import convert

__all__ = ["FewTokens", "chosen_tokens", "few_nbytes", "few_tokens", "write_ranks"]

FORMAT = "minicpm4 token ranks"
MAX_FILE = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FewTokens:
    """Rows of a head: ``linear`` (k, hidden), and the token of each."""

    linear: Linear
    tokens: Ints


def write_ranks(file: Path, counts: Any, vocabulary: str) -> None:
    """Write how often each token of the ``vocabulary`` (its hash) was counted. Raises OSError."""
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    seen = order[np.asarray(counts)[order] > 0]
    made = {"format": FORMAT, "vocabulary": vocabulary, "counted": int(np.sum(counts))}
    write_json(file, {**made, "tokens": seen.tolist(), "counts": np.asarray(counts)[seen].tolist()}, indent=0)


def chosen_tokens(
    file: Path, vocabulary: str, vocab_size: int, count: int, always: Collection[int] = ()
) -> Ints:
    """The ``count`` most frequent tokens of a file, ascending, those of ``always`` among them.

    Raises ConfigError for a file that is none, or was counted in another vocabulary.
    """
    if file.suffix in (".pt", ".bin"):
        raise ConfigError(
            f"{file} is pickled, and would have to be run to be read", "make one with: minicpm4 spec rank"
        )
    raw = read_json(file, MAX_FILE, ConfigError, "make one with: minicpm4 spec rank")
    if raw.get("format") != FORMAT:
        raise ConfigError(f"{file} holds no ranks of tokens", "make one with: minicpm4 spec rank")
    if raw.get("vocabulary") != vocabulary:
        raise ConfigError(
            f"{file} was counted in another vocabulary ({str(raw.get('vocabulary'))[:12]}) than the model's "
            f"({vocabulary[:12]})",
            "make one with: minicpm4 spec rank MODEL",
        )
    tokens = raw.get("tokens")
    right = isinstance(tokens, list) and all(type(t) is int and 0 <= t < vocab_size for t in tokens)
    if not right or not tokens:
        raise ConfigError(f"{file} has tokens that the model has not, or none", "make it anew")
    kept = dict.fromkeys([*sorted(always), *tokens])
    return np.sort(np.array([*kept][:count], np.int32))


def few_nbytes(plan: WeightPlan, config: ModelConfig, count: int) -> int:
    """Bytes that the rows of ``few_tokens`` take for so many tokens."""
    row = _head_of(plan, config)
    return -(-row.nbytes * count // row.shape[0])


def _head_of(plan: WeightPlan, config: ModelConfig) -> MatrixPlan:
    name = EMBED if config.tie_word_embeddings else HEAD
    return next(row for row in plan if row.name == name)


def few_tokens(
    checkpoint: Checkpoint, plan: WeightPlan, config: ModelConfig, ops: OpTable, tokens: Ints
) -> FewTokens:
    """The rows of a model's head for ``tokens``, as ``plan`` has it. Raises CheckpointError,
    UnsupportedError."""
    row = _head_of(plan, config)
    name, whole = row.name, convert(checkpoint, row)
    if getattr(whole.spec, "rows", 1) > 1 or whole.layout != "rows":
        raise UnsupportedError(f"{name} is held as {whole.spec}, whose rows cannot be taken alone")
    if int(tokens.max()) >= whole.shape[0]:
        raise CheckpointError(f"{name} has {whole.shape[0]} tokens, {int(tokens.max())} is asked for")
    return FewTokens(linear=Linear(weight=ops.prepare(_rows(whole, tokens))), tokens=tokens)


def _rows(tensor: PackedTensor, rows: Ints) -> PackedTensor:
    parts: dict[str, Any] = {part: np.ascontiguousarray(array[rows]) for part, array in tensor.parts.items()}
    return replace(tensor, shape=(len(rows), tensor.shape[1]), **parts)
