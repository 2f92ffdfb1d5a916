"""Puts runs of some of the parts together into one result."""

from __future__ import annotations

from typing import Any

ALIKE = ("machine", "threads")


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``new`` with the parts of ``old`` that it lacks; parts are in the order of ``old``, new ones last.

    Every part keeps its own date, commit and load. Raises ValueError for runs of unlike machines.
    """
    for name in ALIKE:
        if old[name] != new[name]:
            raise ValueError(f"the runs cannot be put together: {name} is {old[name]} and {new[name]}")
    parts = {model["name"]: model for model in old["models"]}
    parts |= {model["name"]: model for model in new["models"]}
    start = {"start": new.get("start") or old.get("start")}
    return new | start | {"models": list(parts.values())}
