"""``minicpm4 spec train``: a head that drafts, trained on what its model itself answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minicpm4.cli.head_work import RUN, Wanted, Work
from minicpm4.cli.terminal import progress_or_lines, show, table
from minicpm4.config.strict import check_optional_integer, require

CHECKED, CHECK_TOKENS = 8, 96  # prompts and tokens of the drafting at the end


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Name, folder, .gguf file or hub repository: what it drafts for."
        ),
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="What prompts are made of: a text file, a folder of .txt, .md, .rst and .py; conversations "
            "(.jsonl, .parquet); or a package, apt:NAME or pip:NAME==VERSION. Can be given several times.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="The head, and in training/ the run; it goes on there."
        ),
    ],
    form: Annotated[str, typer.Option(help="eagle3, or the older eagle2.")] = "eagle3",
    prompts: Annotated[int, typer.Option(help="How many prompts are answered.")] = 1200,
    held_out: Annotated[int, typer.Option(help="Of them, so many are not learnt from.")] = 32,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 160,
    temperature: Annotated[float, typer.Option(help="Of each second answer; the others are greedy.")] = 1.0,
    draft_vocab: Annotated[
        str,
        typer.Option(
            metavar="N|N%", help="Tokens that an EAGLE-3 head guesses among: the most frequent ones."
        ),
    ] = "25%",
    frspec_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Which are frequent, as `minicpm4 spec rank` counts (default: in the answers).",
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often each answer is read.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Answers a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate (AdamW, linear decay to 0).")] = 1e-3,
    turns: Annotated[int, typer.Option(help="How often an EAGLE-3 head runs on its own features.")] = 3,
    seed: Annotated[int, typer.Option(help="Of first values and the order of answers.")] = 0,
    every: Annotated[int, typer.Option(metavar="STEPS", help="Steps between checkpoints.")] = 50,
    validate: Annotated[
        int, typer.Option(metavar="STEPS", help="Steps between looks at held-out answers.")
    ] = 50,
    dtype: Annotated[str, typer.Option(help="Of the written head: float16 or float32.")] = "float16",
    rounding: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="Train with matrices rounded to int4-g32, int8-g32, …; written so."
        ),
    ] = "",
    threads: Annotated[int | None, typer.Option(help="Threads of the engine and of torch.")] = None,
    until: Annotated[int | None, typer.Option(metavar="STEP", help="Stop after this many steps.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what it would take, and leave.")
    ] = False,
) -> None:
    """Train a head that drafts for a model, on answers that the model itself gives.

    Prompts are made of passages of the corpus, the model answers them (kept in FOLDER/training/answers), and
    the head learns what the model would say next. A run that was interrupted goes on when the same command is
    given again. Its folder has metrics.jsonl, loss.svg and acceptance.svg. At the end FOLDER is a head for
    `minicpm4 generate --draft eagle:FOLDER`, and is tried on held-out prompts.
    """
    from minicpm4.machine import MAX_THREADS
    from minicpm4.train import need_torch

    check_optional_integer("--threads", threads, 1, MAX_THREADS)
    require(until is None or until > 0, f"--until {until} is no step", "steps are counted from 1")
    wanted = Wanted(
        model=model,
        corpus=tuple(corpus),
        output=output,
        form=form,
        prompts=prompts,
        held_out=held_out,
        answer_tokens=answer_tokens,
        temperature=temperature,
        draft_vocab=draft_vocab,
        ranks=frspec_path,
        epochs=epochs,
        batch=batch,
        rate=rate,
        turns=turns,
        seed=seed,
        every=every,
        validate=validate,
        dtype=dtype,
        rounding=rounding,
    )
    need_torch(threads)
    work = Work(wanted, threads)
    if dry_run:
        work.explain()
        return
    work.check_place()
    from minicpm4.train.checkpoint import alone

    with alone(output / RUN):
        done = work.run(until)
    if done:
        try_head(wanted, work.held, threads)


def try_head(wanted: Wanted, prompts: list[list[int]], threads: int | None) -> None:
    """Draft with the head for prompts that it has not seen, and print what came of it."""
    from minicpm4 import LLM
    from minicpm4.evals.speculation import PLAIN, Case, measure

    cases = [Case("held out", t, tuple(map(tuple, prompts[:CHECKED]))) for t in (0.0, 1.0)]
    draft, context = f"eagle:{wanted.output}", wanted.longest + CHECK_TOKENS
    with LLM(wanted.model, backend="cpu", draft=draft, context=context, max_batch=1, threads=threads) as llm:
        engine: Any = llm.engine
        with progress_or_lines("drafting", "temperatures") as progress:
            both = {PLAIN: None, "eagle": engine.drafting}
            found = measure(llm, both, cases, tokens=CHECK_TOKENS, rounds=1, progress=progress)
    shown = table("held-out prompts", "tokens/s", "speed-up", "tokens a pass", "drafts right", left=1)
    for one in found:
        right = "–" if one.right is None else f"{one.right:.0%}"
        name = f"temperature {one.case.temperature:g}, draft {one.drafter}"
        shown.add_row(name, f"{one.rate:.1f}", f"{one.speed_up:.2f}x", f"{one.accept_length:.2f}", right)
    show(shown)
    differing = sum(one.differing for one in found)
    print(f"\n{differing} tokens differ from plain decoding's; one round, so speeds are rough")
