"""MiniCPM4 on end devices: block-sparse attention, squeezed weights, one readable engine."""

import _signal  # type: ignore[import-not-found]  # built in: signal itself would take milliseconds
import os
import sys


def ends_at_once(*_: object) -> None:
    """What an interrupt does until ``minicpm4.__main__.main`` is there to catch it."""
    os._exit(130)


def _begins_the_command() -> bool:
    """Whether this import is the start of ``python -m minicpm4``, or of the script that an installation makes
    (the program itself imports ``minicpm4.__main__`` then): not one by a program that uses the package."""
    words: list[str] = getattr(sys, "argv", None) or [""]
    if words[0] == "-m":  # which module is run: the word before its own
        return sys.orig_argv[-len(words)] in ("minicpm4", "-mminicpm4")
    program = sys._getframe()
    while program.f_back:
        program = program.f_back
    is_named_so = os.path.basename(words[0]).partition(".")[0] == "minicpm4"
    return is_named_so and "minicpm4.__main__" in program.f_code.co_names


if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler and _begins_the_command():
    _signal.signal(_signal.SIGINT, ends_at_once)

from typing import TYPE_CHECKING  # noqa: E402  (what takes time comes after)

from minicpm4.lazy import at_first_use  # noqa: E402

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
