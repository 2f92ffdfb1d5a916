"""A long text that lies wherever Python does: its manual."""

from __future__ import annotations

from minicpm4.errors import TextError

__all__ = ["python_manual"]


def python_manual() -> str:
    """English with code. Raises TextError where this Python was installed without it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise TextError("this Python was installed without its manual", "give a file of text") from None
    return "\n\n".join(topics.values())
