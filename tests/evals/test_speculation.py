"""Drafting is measured in turns with plain decoding, and what differs is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4 import LLM
from minicpm4.engine.drafters import make_drafting
from minicpm4.evals.draft_prompts import PROMPTS
from minicpm4.evals.speculation import PLAIN, cases, measure
from tests.fixtures.random_checkpoint import make_checkpoint


def test_rounds_are_in_turns_and_nothing_differs(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", max_position_embeddings=2048)
    with LLM(path, threads=2, max_batch=1, context=1600) as llm:
        every = cases(llm, ["chat", "repeating", "long", "unknown"], (0.0, 1.0), long="Once. Twice. " * 9)
        assert [(case.kind, case.temperature) for case in every] == [
            (kind, t) for t in (0.0, 1.0) for kind in ("chat", "repeating", "long")
        ]
        assert len(every[0].prompts) == len(PROMPTS["chat"])
        ops = llm._found.ops
        drafters = {PLAIN: None, "suffix": make_drafting(ops, "suffix", 6)}
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
    assert all(
        data == pytest.approx(1, abs=1) for one in drafted for data in one.as_json()["accepted_by_position"]
    )
