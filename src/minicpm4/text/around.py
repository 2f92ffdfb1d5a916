"""What a tokenizer puts around a text: the post-processor of tokenizer.json, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from minicpm4.errors import TextError
from minicpm4.text.library import AGAIN

__all__ = ["around", "put_around"]


def around(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that the file's own post-processor puts before and after a text. Raises TextError for one of
    a kind, or with a pattern, that is not known, and for tokens that the tokenizer has not."""
    before: list[int] = []
    after: list[int] = []
    for step in _steps(backend):
        first, last = _of_step(step)
        before, after = [*first, *before], [*after, *last]
    unknown = next((i for i in (*before, *after) if backend.id_to_token(i) is None), None)
    if unknown is not None:
        raise TextError(f"the tokenizer's post-processor adds the id {unknown}, which is no token's", AGAIN)
    return before, after


def put_around(backend: Backend, before: Sequence[int], after: Sequence[int]) -> None:
    """Make ``backend`` put these ids around a text, and around each of a pair."""
    names = {i: backend.id_to_token(i) for i in (*before, *after)}

    def sides(text: str, number: int) -> list[dict[str, Any]]:
        def special(ids: Sequence[int]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": names[i], "type_id": number}} for i in ids]

        return [*special(before), {"Sequence": {"id": text, "type_id": number}}, *special(after)]

    state = {
        "type": "TemplateProcessing",
        "single": sides("A", 0),
        "pair": [*sides("A", 0), *sides("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()},
    }
    processor = processors.TemplateProcessing()
    processor.__setstate__(json.dumps(state).encode())  # its own notation has no place for ":" in a token
    backend.post_processor = processor


def _steps(backend: Backend) -> list[Mapping[str, Any]]:
    processor = backend.post_processor
    return [] if processor is None else _flat(json.loads(processor.__getstate__()))


def _flat(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if state.get("type") == "Sequence":
        return [inner for step in state["processors"] for inner in _flat(step)]
    return [state]


def _of_step(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    kind = step.get("type")
    if kind == "ByteLevel":
        return [], []
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [step["cls"][1]], [step["sep"][1]]
    if kind != "TemplateProcessing":
        raise TextError(
            f"the tokenizer's post-processor {kind} is not supported",
            "TemplateProcessing, ByteLevel, BertProcessing and RobertaProcessing are",
        )
    texts = [i for i, item in enumerate(step["single"]) if "Sequence" in item]
    if len(texts) != 1:
        raise TextError(f"the tokenizer's post-processor has a text {len(texts)} times", "once is supported")
    ids = [
        _ids(step, item["SpecialToken"]["id"]) if "SpecialToken" in item else [] for item in step["single"]
    ]
    cut = texts[0]
    return [i for some in ids[:cut] for i in some], [i for some in ids[cut:] for i in some]


def _ids(step: Mapping[str, Any], name: str) -> list[int]:
    """Ids of what a TemplateProcessing calls ``name``; the library reads one that says nothing of it."""
    found = step["special_tokens"].get(name)
    if found is None:
        raise TextError(f"the tokenizer's post-processor adds {name!r}, which it gives no ids", AGAIN)
    return list(found["ids"])
