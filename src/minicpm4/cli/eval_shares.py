"""What commands that judge answers one by one show of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minicpm4.cli.kept_work import tell_left
from minicpm4.cli.terminal import one_line, show, table

SHOWN = 5  # reasons


def tell_share(
    words: tuple[str, str, str],
    share: tuple[float, float | None],
    verdicts: Iterable[tuple[bool, str, bool | None]],
    about: Mapping[str, Any],
    *,
    total: int,
    most: int | None,
) -> None:
    """``words``: what was right, the share of it, what was not. ``share`` with half of its interval;
    ``verdicts``: whether each answer was right, why not, and whether it was cut (None: nobody knows);
    ``about`` has hash and style; ``total`` answers are wanted, of ``most`` tokens each."""
    each = list(verdicts)
    cuts = [cut for _, _, cut in each]
    right, named, wrong = words
    shown = table("answers", right, named, "cut", left=0)
    mean, half = share
    told = f"{mean:.1%}" if half is None else f"{mean:.1%} +- {half:.1%}"
    shown.add_row(f"{len(each):,}", f"{sum(one for one, _, _ in each):,}", told, counted(cuts))
    show(shown)
    why = Counter(reason.partition(":")[0] for one, reason, _ in each if not one)
    if why:
        reasons = [f"{one_line(name):.60} {count}" for name, count in why.most_common(SHOWN)]
        print(f"{wrong}: " + ", ".join(reasons))
    print(f"hash {about['hash']} ({about['style']})")
    print(told_cut(cuts, f"--max-tokens {most}"))
    tell_left(total - len(each), "answers")


def counted(cuts: Sequence[bool | None]) -> str:
    """How many answers were cut, as far as they say so."""
    return ("at least " if None in cuts else "") + f"{sum(map(bool, cuts)):,}"


def told_cut(cuts: Sequence[bool | None], limit: str, what: str = "answers") -> str:
    """A line on answers that the ``limit`` of tokens ended, which might have been right at their end."""
    if not any(cuts) and None not in cuts:
        return f"none of {len(cuts):,} {what} was cut at {limit}"
    return f"{counted(cuts)} of {len(cuts):,} {what} were cut at {limit}"
