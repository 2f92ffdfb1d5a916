"""What reads inputs of strangers: how such an input is made, and what counts as a fault."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minicpm4.errors import Minicpm4Error

MOST = 610  # characters of a message, where its input lies aside: the longest remedy lists all known keys
QUOTED = 300  # of them that may be the input's, one after the other


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
        assert len(message.replace(str(folder), "")) <= MOST, (
            f"a message of {len(message)} characters: {message[:200]}"
        )
        check_quotes(message, case)
        message.encode()  # which goes to logs, and over HTTP
        return outcome


def check_quotes(message: str, case: bytes) -> None:
    """AssertionError where more than QUOTED characters of a message, one after the other, are the input's:
    as they stand there, or as they are written of bytes and of JSON, with spaces and quotes or without."""
    if len(message) <= QUOTED:
        return
    text = case.decode("utf-8", "replace")
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    inputs = [_bare(one) for one in (text, plain, repr(text), repr(case))]
    for at in range(len(message) - QUOTED):
        piece = message[at : at + QUOTED + 1]
        if piece.strip("'\"") != piece:  # a quotation mark is not the input's
            continue
        assert not any(_bare(piece) in one for one in inputs), f"{QUOTED} characters are quoted: {piece[:80]}"


def _bare(text: str) -> str:
    return re.sub(r"[\s'\"\\]+", "", text)
