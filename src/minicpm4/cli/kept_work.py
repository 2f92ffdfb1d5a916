"""What commands of long work have in common: until when they go on, where pieces are kept, what is left."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Annotated

from typer import Option

from minicpm4.config.strict import require

_KEEP = Option(
    "--keep", metavar="FOLDER", help="Keep each answer there; the same command goes on from there."
)
KeepOption = Annotated[Path, _KEEP]
KeepIfOption = Annotated[Path | None, _KEEP]
MinutesOption = Annotated[
    float | None, Option(help="Begin no more answers after so many; with --keep the same command goes on.")
]


def deadline(minutes: float | None) -> float:
    """When ``--minutes`` are over, by time.monotonic. Raises ConfigError."""
    if minutes is None:
        return math.inf
    require(0 < minutes < math.inf, f"--minutes {minutes} is no time", "give minutes above 0")
    return time.monotonic() + 60 * minutes


def tell_left(left: int, what: str, *, kept: bool = True) -> None:
    """Say what there was no time for; nothing where all is done."""
    if left > 0:
        how = "the same command goes on" if kept else "with --keep it could go on"
        print(f"note: time is up: {left:,} {what} are left; {how}", file=sys.stderr)
