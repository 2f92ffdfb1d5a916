"""An op table that leaves its work to another: what looks at single ops of a model derives from it."""

from __future__ import annotations

from typing import Any

from minicpm4.kernels.contract import OpTable

__all__ = ["Delegate"]


class Delegate:
    """Everything is done by ``ops``, but what a subclass does itself. To type checkers it is no OpTable: cast
    it."""

    runs_layers = False  # in one call: its ops would not be seen

    def __init__(self, ops: OpTable) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)
