"""Answers of a model to prompts, and its states beside them, for a head to learn from: made once, in pieces
that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicpm4.data.asks import VERSION, Ask
from minicpm4.engine.llm import LLM
from minicpm4.engine.outputs import RequestOutput
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import CheckpointError, ConfigError, RequestError, TextError
from minicpm4.files import Kept
from minicpm4.formats.bf16 import bf16_to_f32, f32_to_bf16
from minicpm4.formats.safetensors import StoredTensor, open_tensors
from minicpm4.formats.safetensors_write import write_safetensors
from minicpm4.formats.tensor_source import TensorSource
from minicpm4.progress import Progress
from minicpm4.spec.states import Watcher

__all__ = ["LEAST", "Answered", "Asking", "answered", "prompts_of"]

LEAST = 4  # tokens of an answer that something is learnt from


def prompts_of(llm: LLM, asks: Sequence[Ask], longest: int) -> list[list[int]]:
    """Token ids of the prompts, through the chat template, of those that have at most ``longest``; of a model
    without one the plain text. Raises TextError."""
    found = []
    for ask in asks:
        try:
            if llm.has_chat_template:
                ids = llm.chat_ids(ask.messages)
            else:
                ids = llm.prompt_ids(str(ask.messages[-1]["content"]))
        except (RequestError, TextError):  # a conversation that the template refuses
            continue
        if 0 < len(ids) <= longest:
            found.append(list(ids))
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answered:
    """A prompt and what the model answered: token ``ids`` (n,), those from ``start`` on are the answer.
    ``read`` gives its states (n - 1, width) after so many layers, in float32."""

    ids: NDArray[np.int32]
    start: int
    read: Callable[[], dict[int, NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How prompts are answered: at most ``tokens`` tokens, greedily the first ``held``, and of the others
    each second one, the rest at ``temperature``; ``piece`` at a time."""

    held: int
    tokens: int
    temperature: float
    piece: int

    def params(self, number: int) -> SamplingParams:
        greedy = number < self.held or number % 2 == 0
        chance = 0.0 if greedy else self.temperature
        return SamplingParams(max_tokens=self.tokens, temperature=chance, top_p=1.0, top_k=0, seed=number)


def answered(
    llm: LLM,
    folder: Path,
    prompts: Sequence[Sequence[int]],
    asking: Asking,
    hidden: tuple[int, ...],
    about: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Answered | None]:
    """Each prompt with its answer and the states after ``hidden`` layers; None where the answer is too short
    to learn from. Pieces are kept in ``folder``, ``about`` what decides them: what is there is not made
    again, also where more prompts are asked for than before. Raises ConfigError, CheckpointError."""
    Kept(folder, {**about, "version": VERSION, "layers": list(hidden), **asdict(asking)})
    watcher = Watcher(llm, hidden)
    found: list[Answered | None] = []
    for start in range(0, len(prompts), asking.piece):
        some = prompts[start : start + asking.piece]
        file = folder / f"{start:07d}-{len(some)}.safetensors"
        if not file.exists():
            params = [asking.params(start + i) for i in range(len(some))]
            _write(file, some, watcher.answers(some, params))
        found += _read(file, some, hidden)
        if progress is not None:
            progress(len(found), len(prompts))
    return found


def _write(
    file: Path, prompts: Sequence[Sequence[int]], answers: Sequence[tuple[RequestOutput, Any]]
) -> None:
    """A piece: the ids of all texts one after another, where each begins, and the states at all tokens of
    each but the last."""
    texts = [[*ids, *out.token_ids] for ids, (out, _) in zip(prompts, answers, strict=True)]
    arrays: dict[str, Any] = {"ids": np.concatenate(texts).astype(np.int32)}
    arrays["bounds"] = np.array([*accumulate(map(len, texts), initial=0)])
    for layers in answers[0][1]:
        rows = [kept[layers][: len(ids) - 1] for ids, (_, kept) in zip(texts, answers, strict=True)]
        arrays[f"states.{layers}"] = f32_to_bf16(np.concatenate(rows))
    sources = {name: _source(array) for name, array in arrays.items()}
    try:
        write_safetensors(file, sources)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {file}: {error.strerror or error}", "check the place and its free space"
        ) from error


def _source(array: Any) -> TensorSource:
    dtype = {"uint16": "BF16", "int32": "I32", "int64": "I64"}[str(array.dtype)]
    return TensorSource(shape=array.shape, dtype=dtype, make=lambda: array)


def _read(file: Path, prompts: Sequence[Sequence[int]], hidden: tuple[int, ...]) -> Iterator[Answered | None]:
    tensors = open_tensors(file)
    wrong = ConfigError(f"{file} holds something that is no answers", "remove it to have them made anew")
    try:
        ids, bounds = np.array(tensors["ids"].view()), np.array(tensors["bounds"].view())
        states = {layers: tensors[f"states.{layers}"] for layers in hidden}
    except KeyError:
        raise wrong from None
    rows = {one.shape[0] for one in states.values()}
    if len(bounds) != len(prompts) + 1 or bounds[-1] != len(ids) or rows != {len(ids) - len(prompts)}:
        raise wrong
    for number, (prompt, (low, high)) in enumerate(zip(prompts, pairwise(bounds), strict=True)):
        if not np.array_equal(ids[low : low + len(prompt)], prompt):
            raise wrong
        if high - low < len(prompt) + LEAST:
            yield None
            continue
        place = slice(int(low) - number, int(high) - number - 1)
        yield Answered(ids=ids[low:high], start=len(prompt), read=partial(_states, states, place))


def _states(states: Mapping[int, StoredTensor], place: slice) -> dict[int, NDArray[np.float32]]:
    return {layers: bf16_to_f32(one.view()[place].view(np.uint16)) for layers, one in states.items()}
