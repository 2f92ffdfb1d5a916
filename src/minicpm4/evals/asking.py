"""Putting many questions to a model, some at a time: what is done is kept, and found there again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from minicpm4 import LLM, SamplingParams
from minicpm4.config.strict import from_table
from minicpm4.errors import RequestError
from minicpm4.files import Kept

__all__ = ["Said", "count_cut", "go_on", "say"]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
A = TypeVar("A", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model wrote (``text``), of which ``answer`` is what was not only thought of; or why it could not
    be asked (``refused``), as where a prompt does not fit. ``cut``: the limit of tokens ended it.
    ``seconds``: its share of the time that those took which were written together."""

    text: str = ""
    answer: str = ""
    cut: bool = False
    refused: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0


def say(llm: LLM, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[Said]:
    """Answers to prompts, written together."""
    found: dict[int, Said] = {}
    for number, (ids, params) in enumerate(asked):
        try:
            llm.checked([ids], params)
        except RequestError as error:
            found[number] = Said(refused=f"refused: {error}")
    left = [number for number in range(len(asked)) if number not in found]
    if left:
        begin = time.perf_counter()
        outputs = llm.generate([asked[one][0] for one in left], [asked[one][1] for one in left])
        seconds = (time.perf_counter() - begin) / len(left)
        for number, out in zip(left, outputs, strict=True):
            ids = asked[number][0]
            found[number] = Said(
                text=out.text,
                answer=llm.replies.apart(out.text, out.token_ids, prompt=ids)[1],
                cut=out.finish_reason == "length",
                tokens=len(out.token_ids),
                prompt_tokens=len(ids),
                seconds=seconds,
            )
    return [found[number] for number in range(len(asked))]


def count_cut(each: Iterable[bool | None]) -> int | None:
    """How many answers were cut; None where one does not say so, as those do that were kept before it was
    asked."""
    known = list(each)
    return None if None in known else sum(map(bool, known))


def go_on(
    wanted: Sequence[T],
    kind: type[A],
    key: Callable[[T], tuple[Any, ...]],
    answers: Callable[[Sequence[T]], Iterable[A]],
    kept: Kept,
    *,
    together: int,
    tick: Callable[[int], object] = lambda done: None,
    until: Callable[[], bool] = lambda: False,
) -> list[A]:
    """What ``answers`` says of each that is wanted, ``together`` at a time and in order: dataclasses of a
    ``kind``; each is kept, by its ``key``, as soon as it is there. Ends early where ``until`` says so. Raises
    ConfigError for what was kept and is damaged."""
    done: dict[int, A] = {}
    for number, one in enumerate(wanted):
        found = kept.get(lambda value: from_table(kind, value, "it", any_text=True), *key(one))
        if found is not None:
            done[number] = found
    tick(len(done))
    left = [number for number in range(len(wanted)) if number not in done]
    for begin in range(0, len(left), together):
        if until():
            break
        some = left[begin : begin + together]
        for number, answer in zip(some, answers([wanted[one] for one in some]), strict=True):
            kept.put(asdict(answer), *key(wanted[number]))
            done[number] = answer
        tick(len(done))
    return [done[number] for number in sorted(done)]
