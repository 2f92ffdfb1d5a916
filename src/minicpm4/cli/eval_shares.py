"""What commands that judge answers one by one show of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from minicpm4.cli.kept_work import tell_left
from minicpm4.cli.terminal import one_line, show, table

SHOWN = 5  # reasons


def tell_share(
    words: tuple[str, str, str],
    share: tuple[float, float | None],
    verdicts: Iterable[tuple[bool, str]],
    about: Mapping[str, Any],
    total: int,
) -> None:
    """``words``: what was right, the share of it, what was not. ``share`` with half of its interval;
    ``verdicts``: whether each answer was right, and why not; ``about`` has hash and style; ``total`` answers
    are wanted."""
    each = list(verdicts)
    right, named, wrong = words
    shown = table("answers", right, named, left=0)
    mean, half = share
    told = f"{mean:.1%}" if half is None else f"{mean:.1%} +- {half:.1%}"
    shown.add_row(f"{len(each):,}", f"{sum(one for one, _ in each):,}", told)
    show(shown)
    why = Counter(reason.partition(":")[0] for one, reason in each if not one)
    if why:
        reasons = [f"{one_line(name):.60} {count}" for name, count in why.most_common(SHOWN)]
        print(f"{wrong}: " + ", ".join(reasons))
    print(f"hash {about['hash']} ({about['style']})")
    tell_left(total - len(each), "answers")
