"""Op tables: what the decoder asks of a device, and who answers."""

from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.registry import resolve
from minicpm4.kernels.sparse_api import attend_sparse

__all__ = ["OpTable", "attend_sparse", "resolve"]
