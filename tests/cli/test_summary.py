"""The closing line says what was measured, and nothing of what was not."""

from __future__ import annotations

from dataclasses import replace

from minicpm4.cli.summary import as_json, summary
from tests.cli.conftest import METRICS


def test_tokens_at_a_time_are_told_where_drafts_were_right() -> None:
    assert "at a time" not in summary(METRICS) and as_json(METRICS)["accept_length"] is None
    drafted = replace(METRICS, accept_length=2.5, draft_tokens=40, accepted_tokens=30)
    assert "wrote 11: 20.0 tokens/s, 2.50 at a time (75% of drafted tokens right)\n" in summary(drafted)


def test_drafts_that_were_never_right_are_left_out() -> None:
    tried = replace(METRICS, accept_length=1.0, draft_tokens=3, accepted_tokens=0)
    assert summary(tried) == summary(METRICS) and as_json(tried)["draft_tokens"] == 3


def test_the_line_needs_no_words_of_the_trade() -> None:
    told = summary(METRICS)
    assert not [word for word in ("prefill", "decode", "cached", "peak", " pass") if word in told]
    assert "were known" not in summary(replace(METRICS, cached_tokens=0))
