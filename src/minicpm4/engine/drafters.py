"""Which drafter a setting names: the one place that reads it."""

from __future__ import annotations

import logging

from minicpm4.config.strict import shown, suggest
from minicpm4.engine.drafting import ROWS, Drafting
from minicpm4.engine.suffix import SuffixDrafter
from minicpm4.errors import ConfigError
from minicpm4.kernels.contract import OpTable, Tree

logger = logging.getLogger("minicpm4")

DRAFTS = ("off", "auto", "suffix")


def check_draft(draft: str) -> None:
    """Raise ConfigError unless ``draft`` names a drafter."""
    if not isinstance(draft, str) or draft not in DRAFTS:
        raise ConfigError(f"draft = {shown(draft)} is no drafter", suggest(str(draft), list(DRAFTS)))


def make_drafting(ops: OpTable, draft: str, tokens: int | None) -> Drafting | None:
    """What guesses for an engine on ``ops``; None: nothing does.

    "auto" is the suffix drafter, where a row's bits do not depend on the rows beside it; elsewhere drafts may
    change where two tokens are nearly as likely, and only who names a drafter gets one.
    """
    exact = ops.rows_alone
    if draft == "off" or (draft == "auto" and not exact):
        return None
    if not exact:
        logger.warning("%s: drafts may change nearly tied tokens of an answer", ops.description)
    return Drafting(SuffixDrafter(), tokens=tokens, rows=ROWS if ops.on_host else Tree.MOST)
