"""How much of a server's words is taken, and how long it is waited for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from minicpm4.config.strict import require, shown

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of what one server may take of memory, time and patience. Raises ConfigError.

    ``message_bytes``: one message; ``request_bytes``: all that it says between two things that it is asked,
    each message counted as ``least_bytes`` at least, since answering it takes memory;
    ``noise_bytes``: lines of its output that are no messages; ``stderr_bytes``: the end of its complaints
    that is kept. ``tools``, ``pages``: of its list; ``schema_chars``, ``description_chars``: of a tool, with
    more it is left out; ``result_chars``: what a model sees of a result. ``start_seconds``: until a server
    has answered its first request; ``probe_seconds``: until silence counts as the old protocol.
    ``restarts``: in a row, without an answer between. ``rounds``: how often one call may ask for more before
    it answers; ``questions``: what all calls of a server may ask of the user together.
    """

    message_bytes: int = 8 << 20
    request_bytes: int = 32 << 20
    least_bytes: int = 4 << 10
    noise_bytes: int = 256 << 10
    stderr_bytes: int = 16 << 10
    tools: int = 1000
    pages: int = 50
    schema_chars: int = 64 << 10
    description_chars: int = 16 << 10
    result_chars: int = 20_000
    start_seconds: float = 60.0
    probe_seconds: float = 10.0
    restarts: int = 3
    rounds: int = 4
    questions: int = 20

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            require(
                type(value) in (int, float) and value > 0,
                f"Limits.{one.name} = {shown(value)} is no number above 0",
            )
