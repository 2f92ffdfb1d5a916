"""The closing line says what was measured, and nothing of what was not."""

from __future__ import annotations

from dataclasses import replace

from minicpm4.cli.summary import as_json, summary
from tests.cli.conftest import METRICS


def test_tokens_a_pass_are_told_where_drafts_were_checked() -> None:
    assert "a pass" not in summary(METRICS) and as_json(METRICS)["accept_length"] is None
    drafted = replace(METRICS, accept_length=2.5, draft_tokens=40, accepted_tokens=30)
    assert "decode 20.0 tokens/s, 2.50 tokens a pass (75% of drafts right)\n" in summary(drafted)
