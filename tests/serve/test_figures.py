"""Figures of an answer, as llama.cpp's users read them."""

from __future__ import annotations

from minicpm4.engine.metrics import Metrics
from minicpm4.serve.metrics import Metrics as Counters
from minicpm4.serve.openai.figures import timings_of

PLAIN = Metrics(prompt_tokens=9, cached_tokens=0, prefill_s=0.1, new_tokens=21, decode_s=0.5)
DRAFTED = Metrics(
    prompt_tokens=9,
    cached_tokens=0,
    prefill_s=0.1,
    new_tokens=21,
    decode_s=0.5,
    accept_length=2.5,
    draft_tokens=16,
    accepted_tokens=12,
)


def test_drafts_are_told_where_there_were_any() -> None:
    assert not {"draft_n", "draft_n_accepted", "accept_length"} & timings_of(PLAIN).keys()
    timings = timings_of(DRAFTED)
    assert (timings["draft_n"], timings["draft_n_accepted"], timings["accept_length"]) == (16, 12, 2.5)


def test_they_are_counted_for_prometheus() -> None:
    counters = Counters()
    for figures in (PLAIN, DRAFTED, DRAFTED):
        counters.generated("m", figures)
    text = counters.text().decode()
    assert 'minicpm4_draft_tokens_total{model="m"} 32.0' in text
    assert 'minicpm4_accepted_tokens_total{model="m"} 24.0' in text
