"""What reads inputs of strangers: how such an input is made, and what counts as a fault."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minicpm4.errors import Minicpm4Error

MOST = 1500  # characters of a message: paths, figures and a remedy, but no file


@dataclass(frozen=True, kw_only=True)
class Reader:
    """``draw`` makes an input, ``read`` reads it in an empty folder: it may raise errors of ours, and nothing
    else. ``share``: how many inputs it gets of those that are asked for, where each takes long."""

    name: str
    draw: Callable[[Random], bytes]
    read: Callable[[bytes, Path], None]
    share: float = 1.0

    def judge(self, case: bytes, folder: Path) -> str:
        """What came of it: "read", or the error's class. Raises whatever else is raised, AssertionError for a
        message that quotes more than it should."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)  # of what is left out
                self.read(case, folder)
        except Minicpm4Error as error:
            outcome, message = type(error).__name__, str(error)
        else:
            return "read"
        finally:
            logging.disable(logging.NOTSET)
        assert message.strip(), f"{outcome} without a message"
        assert len(message) <= MOST, f"a message of {len(message)} characters: {message[:200]}"
        message.encode()  # which goes to logs, and over HTTP
        return outcome
