"""The closing line of an answer: how much was read and written, how fast, and how."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from minicpm4.cli.terminal import between_words

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.engine.metrics import Metrics


def speed(tokens: int, seconds: float) -> str:
    """``"1,234 tokens/s"``, or a dash where nothing was measured."""
    if tokens <= 0 or seconds <= 0:
        return "–"
    rate = tokens / seconds
    return f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.1f} tokens/s"


def summary(metrics: Metrics) -> str:
    """Describe one answer in two lines, in words that need no other."""
    from minicpm4.machine import human

    read = metrics.prompt_tokens - metrics.cached_tokens
    # The first new token comes out of prefill, so decoding is timed over the others.
    decoded = metrics.new_tokens - 1
    attention: str = metrics.attention
    if attention == "sparse":
        attention += f", {metrics.blocks_read_share:.0%} of the blocks read"
    drafted = ""  # where none was right, it was written as without drafts: as_json tells that they were tried
    if metrics.accept_length is not None and metrics.accepted_tokens:
        right = metrics.accepted_tokens / metrics.draft_tokens
        drafted = f", {metrics.accept_length:.2f} at a time ({right:.0%} of drafted tokens right)"
    known = f" ({metrics.cached_tokens:,} of the prompt were known)" if metrics.cached_tokens else ""
    memory = human(metrics.peak_memory) if metrics.peak_memory else "unknown"
    return (
        f"read {read:,} tokens{known}: {speed(read, metrics.prefill_s)}; "
        f"wrote {metrics.new_tokens:,}: {speed(decoded, metrics.decode_s)}{drafted}\n"
        f"attention {attention}; most memory used so far {memory}"
    )


def print_summary(metrics: Metrics, wanted: bool | None, stream: TextIO | None = None) -> None:
    """Print the summary to standard error: if ``wanted``, or (None) if that is a terminal."""
    print_note(summary(metrics), wanted, stream)


def print_note(text: str, wanted: bool | None, stream: TextIO | None = None) -> None:
    """Print ``text`` where a summary is printed."""
    stream = stream or sys.stderr
    if wanted or (wanted is None and stream.isatty()):
        print(between_words(text, stream), file=stream)


def cut(new: int, most: int | None, filled: str, room: str, more: str = "") -> str:
    """Why an answer of ``new`` tokens ends early: at ``most`` tokens (``more`` allows more of them), or as
    the context is full (what makes ``room``)."""
    if most is not None and new >= most:
        return f"[cut after {new:,} tokens: --max-tokens allows no more{more and '; ' + more}]"
    return f"[cut after {new:,} tokens: {filled}; {room}]"


def thinking_note(llm: LLM, think: bool | None) -> str:
    """Why a switch of thinking does nothing; "" where it does something."""
    if think is None or llm.switches_thinking:
        return ""
    return f"the chat template of {llm.name} has no such switch, so it changes nothing"


def as_json(metrics: Metrics) -> dict[str, Any]:
    """The same figures for machines."""
    from dataclasses import asdict

    return asdict(metrics)
