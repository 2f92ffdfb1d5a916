"""Which drafter a setting names: the one place that reads it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm4.config.strict import require, shown, suggest
from minicpm4.engine.drafter import Drafter
from minicpm4.engine.drafting import ROWS, Drafting
from minicpm4.engine.suffix import BYTES_A_TOKEN, SHARED_BYTES, SuffixDrafter
from minicpm4.errors import ConfigError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Tree
from minicpm4.places import from_user

if TYPE_CHECKING:
    from minicpm4.text.tokenizer import Tokenizer

logger = logging.getLogger("minicpm4")

SHARED = "suffix:shared"
DRAFTS = ("off", "auto", "suffix", SHARED, "mtp")
MODEL, EAGLE = "model:", "eagle:"


def check_draft(draft: str) -> None:
    """Raise ConfigError unless ``draft`` names a drafter."""
    named = isinstance(draft, str) and (draft_model(draft) or draft.removeprefix(EAGLE) not in ("", draft))
    if not isinstance(draft, str) or (draft not in DRAFTS and not named):
        near = SHARED if str(draft).lower().startswith("suffix:") else str(draft)
        remedy = suggest(near, [*DRAFTS, f"{MODEL}NAME", f"{EAGLE}PATH"])
        raise ConfigError(f"draft = {shown(draft)} is no drafter", remedy)


def check_draft_vocab(draft: str, vocab: str | int | None, ranks: str | Path | None) -> None:
    """Raise ConfigError unless ``vocab`` (a share as "25%", or a number) of the tokens in the file ``ranks``
    can be what a drafter guesses among."""
    if vocab is None and ranks is None:
        return
    require(
        draft == "mtp" or draft.startswith((MODEL, EAGLE)),
        f"draft_vocab is about heads and models that draft, and draft is {draft!r}",
        "leave it out",
    )
    require(
        ranks is not None,
        f"draft_vocab = {shown(vocab)} needs to know which tokens are frequent",
        "count them by `minicpm4 spec rank`, and give the file as draft_ranks (--frspec-path)",
    )
    draft_count(vocab, 1 << 30)


def draft_count(vocab: str | int | None, whole: int) -> int:
    """How many of ``whole`` tokens: a quarter where nobody says. Raises ConfigError."""
    text = "25%" if vocab is None else str(vocab)
    number = text.removesuffix("%")
    require(
        number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0,
        f"draft_vocab = {shown(vocab)} is neither a share nor a number of tokens",
        'write "25%", or 32768',
    )
    count = whole * int(number) // 100 if text.endswith("%") else int(number)
    require(count <= whole, f"draft_vocab = {shown(vocab)} is more than the {whole} tokens that there are")
    return max(count, 1)


def draft_model(draft: str) -> str | None:
    """The name of the model that drafts, if one is to."""
    return draft.removeprefix(MODEL) if draft.startswith(MODEL) else None


def draft_head(draft: str, model: Path) -> Path | None:
    """The folder of the head that drafts, if one is to: of "mtp" that among the ``model``'s files, or beside
    their folder, where training puts it."""
    if draft == "mtp":
        places = [(model if model.is_dir() else model.parent) / "mtp", model.parent / "mtp"]
        return next((place for place in places if place.is_dir()), places[0])
    return from_user(draft.removeprefix(EAGLE)) if draft.startswith(EAGLE) else None


def check_vocabularies(target: Tokenizer, own: Tokenizer, name: str) -> None:
    """Raise ConfigError unless the drafts of the model ``name`` are the same tokens to the target: of all
    that both have, the spellings are equal, and neither has one that the other lacks."""
    known, others = target.backend.get_vocab(True), own.backend.get_vocab(True)
    if known != others:
        token = min(number for _, number in known.items() ^ others.items())
        raise ConfigError(
            f"draft = {MODEL}{name} has another vocabulary: its token {token} is {_spelled(others, token)}, "
            f"the model's {_spelled(known, token)}",
            "choose a smaller model of the same family",
        )


def _spelled(vocabulary: dict[str, int], token: int) -> str:
    """How a token is spelled, or that there is none."""
    return next((repr(text)[:40] for text, number in vocabulary.items() if number == token), "missing")


def index_nbytes(draft: str, ops: OpTable, tokens: int) -> int:
    """Bytes of the suffix drafter's index of so many tokens, where ``draft`` leads to that."""
    if draft not in ("auto", "suffix", SHARED) or not drafts(draft, ops):
        return 0
    return tokens * BYTES_A_TOKEN + (SHARED_BYTES if draft == SHARED else 0)


def drafts(draft: str, ops: OpTable) -> bool:
    """Whether anything guesses for an engine on ``ops``: "auto" only where drafts change nothing."""
    return draft != "off" and (draft != "auto" or ops.rows_alone)


def make_drafting(
    ops: OpTable, draft: str, tokens: int | None, own: Drafter | None = None
) -> Drafting | None:
    """What guesses for an engine on ``ops``; None: nothing does. ``own``: the drafter where it has weights.

    "auto" is the suffix drafter, where a row's bits do not depend on the rows beside it; elsewhere drafts may
    change where two tokens are nearly as likely, and only who names a drafter gets one.
    """
    if not drafts(draft, ops):
        return None
    if not ops.rows_alone:
        logger.warning("%s: drafts may change nearly tied tokens of an answer", ops.description)
    return Drafting(
        own or SuffixDrafter(shared=draft == SHARED), tokens=tokens, rows=ROWS if ops.on_host else Tree.MOST
    )
