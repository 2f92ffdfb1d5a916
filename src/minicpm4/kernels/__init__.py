"""Op tables: what the decoder asks of a device, and who answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm4.lazy import at_first_use

if TYPE_CHECKING:
    from minicpm4.kernels.contract import OpTable
    from minicpm4.kernels.registry import resolve
    from minicpm4.kernels.sparse_api import attend_sparse

__all__ = ["OpTable", "attend_sparse", "resolve"]

__getattr__ = at_first_use(
    __name__,
    {
        "OpTable": "minicpm4.kernels.contract",
        "resolve": "minicpm4.kernels.registry",
        "attend_sparse": "minicpm4.kernels.sparse_api",
    },
)
