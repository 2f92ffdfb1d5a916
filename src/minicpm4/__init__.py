"""MiniCPM4 on end devices: block-sparse attention, squeezed weights, one readable engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm4.lazy import at_first_use

if TYPE_CHECKING:
    from minicpm4.engine.async_llm import AsyncLLM
    from minicpm4.engine.calls import Calls
    from minicpm4.engine.llm import LLM
    from minicpm4.engine.outputs import Piece, RequestOutput
    from minicpm4.engine.params import SamplingParams
    from minicpm4.errors import (
        CheckpointError,
        ConfigError,
        EngineError,
        MemoryPlanError,
        Minicpm4Error,
        ModelNotFoundError,
        RequestError,
        TextError,
        ToolSchemaError,
        UnsupportedError,
    )

__version__ = "0.1.0"

# Where each public name lives: imported at its first use, so that ``import minicpm4`` is cheap.
_HOMES = {
    "LLM": "minicpm4.engine.llm",
    "AsyncLLM": "minicpm4.engine.async_llm",
    "Calls": "minicpm4.engine.calls",
    "SamplingParams": "minicpm4.engine.params",
    "Piece": "minicpm4.engine.outputs",
    "RequestOutput": "minicpm4.engine.outputs",
    "CheckpointError": "minicpm4.errors",
    "ConfigError": "minicpm4.errors",
    "EngineError": "minicpm4.errors",
    "MemoryPlanError": "minicpm4.errors",
    "Minicpm4Error": "minicpm4.errors",
    "ModelNotFoundError": "minicpm4.errors",
    "RequestError": "minicpm4.errors",
    "TextError": "minicpm4.errors",
    "ToolSchemaError": "minicpm4.errors",
    "UnsupportedError": "minicpm4.errors",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "Calls",
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "MemoryPlanError",
    "Minicpm4Error",
    "ModelNotFoundError",
    "Piece",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "TextError",
    "ToolSchemaError",
    "UnsupportedError",
    "__version__",
]


__getattr__ = at_first_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
