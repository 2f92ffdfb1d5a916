"""Sparse attention, prefix cache, batches and constrained answers at once: each is as if it were alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from tests.engine.conftest import SPARSE

Make = Callable[..., LLM]
PET = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
NUMBERS = r"[0-9]{2}(, [0-9]{3}){1,4}"
LIST = 'start: "[" item ("; " item)* "]"\nitem: /[a-z]{3,6}/'
CHOICES = ("the first of all", "the second of all", "something else")
FORMS: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "schema": ({"json_schema": PET}, lambda text: jsonschema.validate(json.loads(text), PET) is None),
    "regex": ({"regex": NUMBERS}, lambda text: re.fullmatch(NUMBERS, text)),
    "grammar": ({"grammar": LIST}, lambda text: re.fullmatch(r"\[[a-z]{3,6}(; [a-z]{3,6})*\]", text)),
    "choice": ({"choice": CHOICES}, lambda text: text in CHOICES),
    "free": ({}, lambda text: True),
}
SHARED = 150  # tokens with which all prompts begin, most of which attend to chosen blocks
Asked = list[tuple[str, list[int], SamplingParams]]


def asked() -> Asked:
    """Every form twice, of prompts that begin alike and end in their own way."""
    rng = np.random.default_rng(0)
    shared = rng.integers(1, 250, SHARED).tolist()
    found: Asked = []
    for number, (name, (form, _)) in enumerate([*FORMS.items()] * 2):
        own = rng.integers(1, 250, 5 + 9 * number).tolist()
        found.append((name, shared + own, SamplingParams(temperature=0.0, max_tokens=60, **form)))
    return found


@pytest.mark.parametrize("backend", ["cpu", "ref"])
def test_every_answer_keeps_its_form_and_is_that_which_it_is_alone(make_llm: Make, backend: str) -> None:
    options = {"sparse": {**SPARSE, "dense_len": 60}, "chunk": 8, "max_batch": 4, "backend": backend}
    lonely, llm = make_llm(prefix_cache=False, **options), make_llm(**options)
    alone = [lonely.generate(ids, params) for _, ids, params in asked()]
    for turn in ("nothing cached", "all cached"):
        together = llm.generate([ids for _, ids, _ in asked()], [params for _, _, params in asked()])
        for (name, _, _), one, other in zip(asked(), alone, together, strict=True):
            assert other.text == one.text and other.token_ids == one.token_ids, (turn, name)
            assert other.finish_reason == one.finish_reason
            if other.finish_reason == "stop":
                assert FORMS[name][1](other.text), (turn, name, other.text)
            assert other.metrics.attention == "sparse" and other.metrics.blocks_read_share < 1
        ends = {
            name for (name, _, _), one in zip(asked(), together, strict=True) if one.finish_reason == "stop"
        }
        assert ends >= {"schema", "regex", "choice"}, "hardly any answer was whole: a weak test"
    # Pages of 16 tokens: of the shared ones all that are full, of a prompt that came before all but its last.
    cached = [one.metrics.cached_tokens for one in together]
    assert cached == [(len(ids) - 1) // 16 * 16 for _, ids, _ in asked()]
    pages = llm.engine.scheduler.pages  # type: ignore[attr-defined]
    assert pages.num_available == pages.num_pages
