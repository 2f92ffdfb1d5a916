"""Calls of tools as text."""

from __future__ import annotations

import json

from minicpm4.files import finite, json_text
from minicpm4.text.toolcalls import ToolCall


def arguments_text(call: ToolCall) -> str:
    """The arguments of a call as JSON."""
    try:
        return json_text(call.arguments, ascii_only=False)
    except (TypeError, ValueError):  # a literal of Python for which JSON has no word
        return json.dumps(finite(call.arguments), ensure_ascii=False, default=str)
