"""Frozen, checked settings: of a model, its rotary positions, its sparse attention."""

from minicpm4.config.model import ModelConfig
from minicpm4.config.rope import RopeScaling
from minicpm4.config.sparse import SparseConfig

__all__ = ["ModelConfig", "RopeScaling", "SparseConfig"]
