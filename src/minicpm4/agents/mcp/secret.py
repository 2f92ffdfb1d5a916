"""Which values may be secret."""

from __future__ import annotations

import os
import re

__all__ = ["secret_words"]

LEAST, LEAST_NAMED = 8, 4  # characters of a value that is hidden: any one, or one whose name says so
_NAMED = re.compile(r"key|token|secret|pass|auth|cred|cookie|session|private|bearer|pwd", re.IGNORECASE)
_PLAIN = re.compile(r"true|false|[\d.:]+|[a-z]{2}_[A-Z]{2}(\.[\w-]+)?", re.IGNORECASE)


def secret_words(name: str, value: str) -> list[str]:
    """What of a value must not be shown: none of paths that are there, numbers and words as ``true``."""
    words = [value, *value.split()] if " " in value.strip() else [value]
    least = LEAST_NAMED if _NAMED.search(name) else LEAST
    is_path = value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))
    if is_path or _PLAIN.fullmatch(value.strip()):
        return []
    return [word.strip() for word in words if len(word.strip()) >= max(least, LEAST if word != value else 0)]
