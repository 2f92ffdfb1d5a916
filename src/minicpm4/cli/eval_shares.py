"""What commands that judge answers one by one have in common: options, what they show and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minicpm4.cli.kept_work import deadline, tell_left
from minicpm4.cli.options import check_outputs, number, write_figures
from minicpm4.cli.terminal import one_line, show, table
from minicpm4.config.strict import check_choice

if TYPE_CHECKING:
    from minicpm4.evals.code import Answer as Written
    from minicpm4.evals.maths import Answer as Solved

SHOWN = 5  # reasons
FirstOption = Annotated[int | None, Option(metavar="N", help="Only the first N problems.")]
TogetherOption = Annotated[int, Option(help="Answers written at a time.")]
ScoreOption = Annotated[
    Path | None, Option("--json", metavar="FILE", help="Write the score and every answer there.")
]


def check_asking(
    first: int | None,
    together: int,
    minutes: float | None,
    json_file: Path | None,
    read: Sequence[str | Path],
    style: str | None,
) -> float:
    """When ``minutes`` are over, by time.monotonic. Raises ConfigError where these options are wrong, and
    where ``json_file`` would be written over what is ``read``."""
    number("--together", together, 256, least=1)
    if first is not None:
        number("--first", first, 100_000, least=1)
    end = deadline(minutes)
    check_outputs({"--json": json_file}, read)
    if style is not None:
        check_choice("--style", style, ("chat", "complete"))
    return end


def write_share(
    file: Path,
    name: str,
    share: tuple[float, float | None],
    answers: Sequence[Written] | Sequence[Solved],
    about: Mapping[str, Any],
    total: int,
) -> None:
    """``about``, the share under its ``name``, and every answer of ``total`` that were wanted."""
    from minicpm4.evals.asking import count_cut

    mean, half = share
    figures = {**about, name: mean, "half_width": half, "of": len(answers), "wanted": total}
    figures["cut"] = count_cut(one.cut for one in answers)
    write_figures(file, {**figures, "answers": [asdict(one) for one in answers]})


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
