"""Figures and log probabilities of an answer, in OpenAI's form; times as llama.cpp's users read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import TokenLogprobs
from minicpm4.text.tokenizer import Tokenizer


def usage_of(every: Sequence[Metrics], thought: int | None = None) -> dict[str, Any]:
    """Tokens of a request's prompts and answers together; ``thought``: of the reasoning in these, if there
    may be any."""
    prompt = sum(one.prompt_tokens for one in every)
    new = sum(one.new_tokens for one in every)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in every)},
    }
    if thought is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    return usage


def timings_of(figures: Metrics) -> dict[str, Any]:
    """Tokens, milliseconds and tokens a second: of the prompt without what was cached, and of the answer."""
    read, new = figures.prompt_tokens - figures.cached_tokens, figures.new_tokens
    timings: dict[str, Any] = {"cache_n": figures.cached_tokens}
    for name, count, seconds in (("prompt", read, figures.prefill_s), ("predicted", new, figures.decode_s)):
        # The first token of an answer comes with the prompt's last: it took no time of its own.
        timed = count if name == "prompt" else max(count - 1, 0)
        timings |= {
            f"{name}_n": count,
            f"{name}_ms": seconds * 1e3,
            f"{name}_per_token_ms": seconds * 1e3 / timed if timed else 0.0,
            f"{name}_per_second": timed / seconds if seconds else 0.0,
        }
    timings |= {"attention": figures.attention, "blocks_read_share": figures.blocks_read_share}
    if figures.accept_length is not None:
        timings |= {"draft_n": figures.draft_tokens, "draft_n_accepted": figures.accepted_tokens}
        timings["accept_length"] = figures.accept_length
    return timings


def chat_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], hidden: Collection[int]
) -> list[dict[str, Any]]:
    """One entry a token; ``hidden``: tokens that end an answer and are no part of it."""
    return [
        {
            **_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_token(tokenizer, token, value) for token, value in entry.top.items()],
        }
        for entry in entries
        if entry.token_id not in hidden
    ]


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}
