"""The tokenizers library under what strangers wrote: what it raises, and its panics, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minicpm4.errors import Minicpm4Error, TextError, shortened

__all__ = ["AGAIN", "library"]

AGAIN = "fetch the file again: it may be damaged"
_RAISED = (OverflowError, TypeError, ValueError)  # of values that have no place there; else Exception itself


@contextmanager
def library(condition: str, remedy: str = AGAIN) -> Iterator[None]:
    """Raises TextError ("``condition``: what the library says") where calls of the library fail. Mistakes of
    our own beside them (KeyError, say) stay what they are."""
    try:
        yield
    except Minicpm4Error:
        raise
    except BaseException as error:
        # A panic inside the Rust library reaches Python as a BaseException of its own.
        panic = type(error).__name__ == "PanicException"
        if not (panic or type(error) is Exception or isinstance(error, _RAISED)):
            raise
        raise TextError(f"{condition}: {shortened(str(error), 250)}", remedy) from error
