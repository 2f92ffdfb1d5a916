"""Names of the files of a model that is split over several: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["models_of", "parts_of"]

_PART = re.compile(r"(.*-)([0-9]{5})(-of-)([0-9]{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def parts_of(name: str) -> list[str]:
    """The names of all parts of the model that the file ``name`` belongs to, the first part first; ``name``
    alone where it is not the name of a part."""
    match = _PART.fullmatch(name)
    count = int(match[4]) if match else 0
    if match is None or not 1 <= int(match[2]) <= count:
        return [name]
    return [f"{match[1]}{number:05d}{match[3]}{match[4]}{match[5]}" for number in range(1, count + 1)]


def models_of(names: Iterable[str]) -> list[str]:
    """Of .gguf files the models: of those that are split the first part, be it there or not. Sorted."""
    return sorted({parts_of(name)[0] for name in names})
