"""``minicpm4 eval math``: how many problems of mathematics a model solves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.eval_shares import (
    FirstOption,
    ScoreOption,
    TogetherOption,
    check_asking,
    tell_share,
    write_share,
)
from minicpm4.cli.kept_work import KeepOption, MinutesOption
from minicpm4.cli.options import EngineFlags, expand, number
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import progress_bar
from minicpm4.config.strict import require

if TYPE_CHECKING:
    from minicpm4.evals.maths import Answer, Problem

_ENGINE, _SAMPLING = EngineFlags(), SamplingFlags()


@expand
def math(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    *,
    problems: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Problems as JSON lines, or .gz, with question and answer (GSM8K's layout); may be given "
            "several times.",
        ),
    ] = None,
    gym: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="A set that reasoning-gym makes, such as gsm_symbolic; may be given several times.",
        ),
    ] = None,
    each: Annotated[int, typer.Option(help="Problems of each --gym set.")] = 100,
    seed_of_gym: Annotated[int, typer.Option("--gym-seed", help="Other problems of --gym.")] = 0,
    keep: KeepOption,
    style: Annotated[
        str | None,
        typer.Option(help="chat, by the model's template, or complete, on from the question. Default: chat."),
    ] = None,
    first: FirstOption = None,
    together: TogetherOption = 8,
    minutes: MinutesOption = None,
    json_file: ScoreOption = None,
    engine: EngineFlags = _ENGINE,
    sampling: SamplingFlags = _SAMPLING,
) -> None:
    """Have a model solve problems of mathematics; math-verify judges the last answer that it gives.

    Shown is the share that is right with a 95% interval over problems. Without --temperature the likeliest
    tokens are taken, 512 at most. Scores of different hashes (tasks, template, tokenizer, sampling) are not
    to be compared.
    """
    number("--each", each, 10_000, least=1)
    number("--gym-seed", seed_of_gym, 1 << 31)
    end = check_asking(first, together, minutes, json_file, [model, *(problems or [])], style)
    params = sampling.params({"temperature": 0.0, "max_tokens": 512})
    from minicpm4.evals import maths
    from minicpm4.evals.asking import count_cut
    from minicpm4.evals.results import FIELD, result_of, weights_of, whole_hash
    from minicpm4.files import Kept

    asked = _problems(problems or [], gym or [], each, seed_of_gym)[:first]
    with maths.Judge() as judge:
        maths.check(asked, judge)
    with maths.Judge() as judge, engine.load(engine.inspect(model, max_batch=together)) as llm:
        style = style or ("chat" if llm.has_chat_template else "complete")
        hashes = maths.hashes(llm, asked, style, params)
        about: dict[str, Any] = {
            "kind": "math",
            "model": model,
            "engine": engine.told(),
            "hash": whole_hash(hashes),
        }
        kept = Kept(keep, {**about, "weights": weights_of(llm)})
        print(llm.description, file=sys.stderr)
        with progress_bar("writing", "answers") as progress:
            answers = maths.ask(
                llm,
                asked,
                kept,
                judge,
                style=style,
                params=params,
                together=together,
                tick=lambda done: progress(done, len(asked)) if progress is not None else None,
                until=lambda: time.monotonic() >= end,
            )
        require(bool(answers), "no answer to count", "give more time")
        taken = [(one.prompt_tokens, one.tokens, one.seconds) for one in answers]
        items = {one.task: float(one.right) for one in answers}
        cut = count_cut(one.cut for one in answers)
        told: dict[str, Any] = {"kind": "math", "model": model, "engine": engine.told(), "hashes": hashes}
        made = result_of(llm, **told, items=items, taken=taken, cut=cut)
        about |= {"style": style, "description": llm.description, FIELD: [made.as_dict()]}
    _tell(answers, len(asked), params.max_tokens, about, json_file)


def _problems(files: list[Path], gym: list[str], each: int, seed: int) -> list[Problem]:
    from dataclasses import replace

    from minicpm4.evals.maths import make_problems, read_problems

    require(bool(files or gym), "no problems are named", "give --problems FILE, or --gym SET")
    require(len(set(gym)) == len(gym), "a --gym set is given twice", "leave one of the two out")
    require(len({*map(str, files)}) == len(files), "a file is given twice", "leave one of the two out")
    found: list[Problem] = []
    for file in files:
        some = read_problems(file)
        found += some if len(files) == 1 else [replace(one, task=f"{file.name} {one.task}") for one in some]
    for name in gym:
        found += make_problems(name, each, seed)
    require(
        len({one.task for one in found}) == len(found), "files of one name have the same ids", "rename one"
    )
    return found


def _tell(
    answers: list[Answer], total: int, most: int | None, about: dict[str, Any], json_file: Path | None
) -> None:
    from minicpm4.evals.intervals import mean_with_interval

    share = mean_with_interval([float(one.right) for one in answers])
    if json_file is not None:
        write_share(json_file, "right", share, answers, about, total)
    verdicts = [(one.right, one.why, one.cut) for one in answers]
    tell_share(("right", "share", "not right"), share, verdicts, about, total=total, most=most)
