"""``minicpm4 eval ruler``: RULER's thirteen kinds of questions about long texts."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.eval_shares import told_cut
from minicpm4.cli.kept_work import KeepOption, MinutesOption, deadline, tell_left
from minicpm4.cli.options import (
    EngineFlags,
    check_outputs,
    expand,
    number,
    numbers,
    texts_or_manual,
    then_written,
    write_figures,
)
from minicpm4.cli.terminal import progress_bar, show, table
from minicpm4.config.strict import require
from minicpm4.files import write_file

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.evals.results import Result
    from minicpm4.evals.ruler import Answer, Maker, Score

_ENGINE = EngineFlags()


@expand
def ruler(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    *,
    keep: KeepOption,
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Lengths of question and answer together.")
    ] = "4096",
    kinds: Annotated[
        str | None,
        typer.Option(metavar="KIND,...", help="Only these kinds, such as niah_single_2,vt. Default: all."),
    ] = None,
    each: Annotated[int, typer.Option(help="Questions of each kind at each length.")] = 20,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text in which needles are hidden; several may be given. Default: Python's manual.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Without the chat template, for models that have learnt none.")
    ] = False,
    both: Annotated[
        bool, typer.Option("--both", help="Dense and sparse attention, one after the other.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Other questions.")] = 0,
    minutes: MinutesOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores and every answer there.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw scores by kind and length as a heat map.")
    ] = None,
    engine: EngineFlags = _ENGINE,
) -> None:
    """Ask about long texts: needles, variables, frequent words, facts in documents (RULER).

    The thirteen kinds are made here, at any length in the model's own tokens, and scored by RULER's rules.
    Texts and people are others than RULER's, so scores are not to be compared with published ones, nor those
    of different hashes (kinds, text, template, tokenizer) with one another.
    """
    from minicpm4.evals.results import FIELD, whole_hash
    from minicpm4.evals.ruler import KINDS
    from minicpm4.evals.ruler.fitting import check_kinds

    sizes = numbers("--lengths", lengths, 1 << 24, least=64)
    number("--each", each, 1000, least=1)
    asked = check_kinds([one.strip() for one in kinds.split(",")] if kinds is not None else list(KINDS))
    end = deadline(minutes)
    require(not (both and engine.attention), "--both and --attention exclude one another", "leave one out")
    check_outputs({"--json": json_file, "--plot": plot}, [model, *(text or [])])
    content = texts_or_manual(text or [])
    ways = ["dense", "sparse"] if both else [engine.attention or "auto"]
    settings = replace(engine, context=engine.context or max(sizes) + 8)
    about: dict[str, Any] = {"model": model, "seed": seed, "engine": engine.told()}
    found: dict[str, list[Answer]] = {}
    results: list[dict[str, Any]] = []
    for way in ways:
        chosen = replace(settings, sparse=None) if both and way == "dense" else settings
        with chosen.load(chosen.inspect(model, attention=way)) as llm:
            maker, hashes = _maker(llm, content, plain, seed, [one.name for one in asked])
            about |= {"hash": whole_hash(hashes), "plain": plain or not llm.has_chat_template}
            about[way] = llm.description
            print(llm.description, file=sys.stderr)
            found[way] = _ask(llm, maker, asked, sizes, each, keep / way, about, end)
            if found[way]:
                told = {**engine.told(), "attention": way}
                results.append(_result(llm, model, told, hashes, found[way]).as_dict())
    about[FIELD] = results
    _tell(found, about, sizes, len(asked) * each, json_file, plot)


def _result(
    llm: LLM, model: str, engine: Mapping[str, Any], hashes: Mapping[str, str], answers: list[Answer]
) -> Result:
    from minicpm4.evals.asking import count_cut
    from minicpm4.evals.results import result_of

    items = {f"{one.kind} {one.length} {one.index}": one.score for one in answers}
    taken = [(one.prompt_tokens, one.tokens, one.seconds) for one in answers]
    told: dict[str, Any] = {"kind": "ruler", "model": model, "engine": engine, "hashes": hashes}
    return result_of(llm, **told, items=items, taken=taken, cut=count_cut(one.cut for one in answers))


def _maker(llm: LLM, content: str, plain: bool, seed: int, kinds: list[str]) -> tuple[Maker, dict[str, str]]:
    """Makes prompts; and hashes of what they depend on."""
    from minicpm4.evals.results import hash_of, hashes_of
    from minicpm4.evals.ruler import Maker
    from minicpm4.evals.ruler.words import sentences

    def encode(text: str, begin: str) -> list[int]:
        if plain or not llm.has_chat_template:
            return llm.prompt_ids(f"{text}\n{begin}")
        return [*llm.chat_ids([{"role": "user", "content": text}]), *llm.tokenizer.encode_after(begin)]

    haystack = sentences(content)
    tasks = [hashlib.sha256(content.encode()).hexdigest(), kinds, seed]
    chat = llm.has_chat_template and not plain
    hashes = hashes_of(llm, tasks=tasks, settings=[chat], chat=chat)
    # Questions are made to a length in tokens, so those of another tokenizer or template are others.
    hashes["tasks"] = hash_of([hashes[name] for name in ("tasks", "template", "tokenizer")])
    return Maker(encode, haystack, seed=seed), hashes


def _ask(
    llm: LLM,
    maker: Maker,
    kinds: list[Any],
    sizes: list[int],
    each: int,
    keep: Path,
    about: Mapping[str, Any],
    end: float,
) -> list[Answer]:
    from minicpm4.evals.results import weights_of
    from minicpm4.evals.ruler import ask
    from minicpm4.files import Kept

    begun = {name: about[name] for name in ("model", "engine", "hash")}
    kept = Kept(keep, {"kind": "ruler", **begun, "weights": weights_of(llm)})
    total = len(kinds) * len(sizes) * each
    with progress_bar("asking", "questions") as progress:
        return ask(
            llm,
            maker,
            kinds,
            sizes,
            each,
            kept,
            tick=lambda done: progress(done, total) if progress is not None else None,
            until=lambda: time.monotonic() >= end,
        )


def _tell(
    found: Mapping[str, list[Answer]],
    about: Mapping[str, Any],
    sizes: Sequence[int],
    wanted: int,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """``wanted``: answers at each of ``sizes``."""
    from minicpm4.evals.ruler import effective_length, scores, svg

    scored = {way: scores(answers) for way, answers in found.items()}
    rows = {way: [asdict(one) for one in each] for way, each in scored.items()}
    every = {way: [asdict(one) for one in each] for way, each in found.items()}

    def picture(file: Path, way: str) -> None:
        write_file(file, svg(f"RULER's kinds, {way} attention: {Path(about['model']).name}", scored[way]))

    pictures = []
    for way in scored:
        if plot is not None and scored[way]:
            one = plot if len(scored) == 1 else plot.with_stem(f"{plot.stem}-{way}")
            pictures.append((one, partial(picture, way=way)))
    figures = {**about, "scores": rows, "answers": every}
    with then_written((json_file, lambda file: write_figures(file, figures)), *pictures):
        for way, each in scored.items():
            _show(way, each, wanted)
            best = effective_length(each, lengths=sizes, wanted=wanted)
            length = "no length" if best is None else f"{best:,} tokens"
            print(f"{way}: the average reaches 85.6% up to {length}")
            cuts = [one.cut for one in found[way]]
            print(f"{way}: {told_cut(cuts, 'the few tokens that their kinds give them')}")
            tell_left(wanted * len(sizes) - len(found[way]), f"questions ({way})")
        print(f"hash {about['hash']}")


def _show(way: str, found: list[Score], wanted: int) -> None:
    from minicpm4.evals.ruler.running import averages

    lengths = sorted({one.length for one in found})
    shown = table(way, *(f"{length:,}" for length in lengths), "blocks read", left=1)
    for kind in dict.fromkeys(one.kind for one in found):
        row = {one.length: one for one in found if one.kind == kind}
        cells = [_cell(row.get(length)) for length in lengths]
        shown.add_row(kind, *cells, f"{sum(one.read for one in row.values()) / len(row):.0%}")
    means = averages(found, wanted)
    known = (f"{means[length]:.1%}" if length in means else "" for length in lengths)
    shown.add_row("average", *known, "")
    show(shown)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.0%}" + ("" if score.half is None else f" +- {score.half:.0%}")
