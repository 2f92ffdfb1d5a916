"""Where it was; see ``minicpm4.files.Kept``."""

from minicpm4.files import Kept

__all__ = ["Kept"]
