"""Drafting is measured in turns with plain decoding, and what differs is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minicpm4 import LLM
from minicpm4.engine.drafters import make_drafting
from minicpm4.evals.draft_prompts import PROMPTS
from minicpm4.evals.speculation import PLAIN, Case, cases, measure
from tests.fixtures.random_checkpoint import make_checkpoint

KINDS = ("chat", "repeating", "long")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = make_checkpoint(tmp_path_factory.mktemp("drafted") / "tiny", max_position_embeddings=2048)
    with LLM(path, threads=2, max_batch=1, context=1600) as made:
        yield made


@pytest.fixture
def every(llm: LLM) -> list[Case]:
    return cases(llm, [*KINDS, "unknown"], (0.0, 1.0), long="Once. Twice. " * 9)


def test_a_case_is_a_kind_at_a_temperature(every: list[Case]) -> None:
    assert [(case.kind, case.temperature) for case in every] == [
        (kind, t) for t in (0.0, 1.0) for kind in KINDS
    ]
    assert len(every[0].prompts) == len(PROMPTS["chat"])


def test_rounds_are_in_turns_and_nothing_differs(llm: LLM, every: list[Case]) -> None:
    drafters = {PLAIN: None, "suffix": make_drafting(llm._found.ops, "suffix", 6)}
    asked: list[int] = []
    found = measure(
        llm,
        drafters,
        every,
        tokens=30,
        rounds=9,
        goes_on=lambda done: not asked.append(done) and done < 2,
    )
    assert asked == [0, 1, 2] and [one.drafter for one in found] == [PLAIN, "suffix"] * 6
    for one in found:
        assert len(one.rates) == 2 and one.rate > 0 and one.tokens == 2 * 29 * len(one.case.prompts)
        data = one.as_json()
        assert data["differing_tokens"] == one.differing == 0
        assert one.drafter == "suffix" or (one.accept_length, one.right, one.speed_up) == (1.0, None, 1.0)
        assert sum(one.positions) == one.accepted <= one.drafts
    drafted = [one for one in found if one.accepted]
    assert drafted and all(1 < one.accept_length <= 7 for one in drafted)
    by_position = [data for one in drafted for data in one.as_json()["accepted_by_position"]]
    assert all(data == pytest.approx(1, abs=1) for data in by_position)
