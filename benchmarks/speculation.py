"""What drafting gains on this machine: speed, acceptance length, and whether any token differs.

Prompts of several kinds are answered without drafts and with each drafter in turn, round after round; a
speed-up is the median over rounds, each beside its own round without. With --write, JSON and a table go
into benchmarks/results.

    .venv/bin/python benchmarks/speculation.py [--minutes 18] [--only smollm2|qwen] [--write]
    .venv/bin/python benchmarks/speculation.py --head FOLDER       a head of `minicpm4 spec train` for SmolLM2
    .venv/bin/python benchmarks/speculation.py --equal [--prompts 40] [--tokens 256] [--write]
    .venv/bin/python benchmarks/speculation.py --processes 50 [--write]

``--equal`` compares answers alone, of SmolLM2 in three formats, one and eight at a time; half of the prompts
are long, and read with sparse attention from the first token on. ``--processes`` starts SmolLM2 so often,
with one thread and two in turn, and compares texts and, with four drafts a pass, how many were accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commits import commit

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.drafters import make_drafting
from minicpm4.engine.drafting import Drafting
from minicpm4.evals.speculation import PLAIN, Measured, cases, measure
from minicpm4.files import json_text, write_file
from minicpm4.machine import cpu_name

HERE = Path(__file__).parent
LONG = HERE.parent / "docs" / "guide.md"
ALL = (
    "editing",
    "quoting",
    "summarising",
    "coding",
    "mathematics",
    "chat",
    "translation",
    "long",
    "repeating",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A model, its drafters (fixed numbers of drafts behind a colon), and what it answers."""

    model: str
    drafters: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: int
    draft_model: str = ""
    head: str = ""
    long: int = 0  # characters
    share: float = 1.0  # of the time


PARTS = {
    "smollm2": Part(
        model="smollm2-135m-instruct",
        drafters=("suffix", "suffix:7"),
        kinds=ALL,
        tokens=96,
        long=12_000,
        share=0.35,
    ),
    "qwen": Part(
        model="qwen2.5-coder-1.5b-instruct",
        draft_model="qwen2.5-coder-0.5b-instruct",
        drafters=("suffix", "model", "model:4"),
        kinds=("editing", "quoting", "coding", "mathematics", "chat", "repeating"),
        tokens=48,
        share=0.65,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=18.0, help="in all; a round begun is ended")
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    parser.add_argument("--kinds", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--equal", action="store_true", help="compare answers, measure nothing")
    parser.add_argument("--head", default="", help="a folder: it drafts for SmolLM2, which alone is measured")
    parser.add_argument("--processes", type=int, default=0, help="compare answers of so many starts")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, default=40, help="with --equal")
    parser.add_argument("--tokens", type=int, default=256, help="with --equal, of each answer")
    options = parser.parse_args()
    if options.one:
        print(json_text(_one(threads=options.one)))
        return
    if options.processes:
        _processes(options.processes, options.write)
        return
    if options.equal:
        _equal(options.prompts, options.tokens, options.write)
        return
    if options.head:
        options.only = "smollm2"
        PARTS["smollm2"] = replace(
            PARTS["smollm2"], head=options.head, drafters=("suffix", "eagle", "eagle:2")
        )
    parts = {name: part for name, part in PARTS.items() if options.only in (None, name)}
    whole = sum(part.share for part in parts.values())
    for name, part in parts.items():
        seconds = 60 * options.minutes * part.share / whole
        kept = replace(part, kinds=tuple(kind for kind in part.kinds if kind in options.kinds))
        _run(name, kept, options.temperatures, seconds, options.rounds, options.write)


def where() -> dict[str, str]:
    """What results of drafting say of themselves, named by their day."""
    return {"machine": cpu_name(), "commit": commit(), "date": datetime.now(UTC).date().isoformat()}


def _run(
    name: str, part: Part, temperatures: Sequence[float], seconds: float, rounds: int, write: bool
) -> None:
    draft = f"model:{part.draft_model}" if part.draft_model else "suffix"
    draft, name = (f"eagle:{part.head}", f"{name}_head") if part.head else (draft, name)
    with LLM(part.model, context=8192, max_batch=1, draft=draft) as llm:
        drafters = {PLAIN: None, **{one: drafting_of(llm, one) for one in part.drafters}}
        text = LONG.read_text(encoding="utf-8")[: part.long]
        every = cases(llm, part.kinds, temperatures, text)
        sizes = {"tokens": part.tokens, "rounds": rounds}
        found = measure(llm, drafters, every, **sizes, goes_on=_until(seconds), progress=_tell)
        figures = {
            "model": part.model,
            "draft_model": part.draft_model or None,
            "head": Path(part.head).name if part.head else None,
            "kernels": llm.description,
            **where(),
            "tokens": part.tokens,
            "rounds": len(found[0].rates),
            "costs": {one: _costs(made) for one, made in drafters.items() if made is not None},
            "cases": [one.as_json() for one in found],
        }
    said = f"{part.model}, {figures['rounds']} rounds, {figures['machine']}, {figures['date']}"
    shown = f"{said}\n\n{_table(found)}"
    print(shown)
    if write:
        stem = f"speculation_{name}_{figures['date']}"
        write_file(HERE / "results" / f"{stem}.json", json_text(figures, indent=1) + "\n")
        write_file(HERE / "results" / f"{stem}.md", shown)


SPARSE = {"attention": "sparse", "sparse": {"topk": 4, "window_size": 256, "dense_len": -1}}


def _equal(prompts: int, tokens: int, write: bool) -> None:
    """Answers of PARTS["smollm2"] with drafts and without, token by token."""
    rows: list[dict[str, Any]] = []
    model = PARTS["smollm2"].model
    for weights in ("int4", "bf16", "ternary"):
        for batch in (1, 8):
            with LLM(model, context=8192, max_batch=batch, weights=weights, draft="suffix", **SPARSE) as llm:
                rows += _compare(llm, weights, batch, prompts, tokens)
                print(rows[-2:], flush=True)
    figures = {**where(), "prompts": prompts, "tokens": tokens}
    text = json_text({**figures, "rows": rows}, indent=1) + "\n"
    print(text)
    if write:
        write_file(HERE / "results" / f"speculation_equal_{figures['date']}.json", text)


FEW = ("quoting", "coding", "chat")


def _one(threads: int) -> list[dict[str, Any]]:
    """What a start of its own answers to prompts of three kinds, greedily and not, and how it drafted."""
    model = PARTS["smollm2"].model
    with LLM(model, context=2048, max_batch=1, threads=threads, draft="suffix", draft_tokens=4) as llm:
        found = []
        for case in cases(llm, FEW, (0.0, 1.0), ""):
            params = SamplingParams(max_tokens=64, temperature=case.temperature, seed=7, ignore_eos=True)
            for out in llm.generate([list(ids) for ids in case.prompts], params):
                m = out.metrics
                counts = [m.draft_tokens, m.accepted_tokens, *m.accepted_by_position]
                found.append({"kind": case.kind, "tokens": out.token_ids, "drafts": counts})
    return found


def _processes(count: int, write: bool) -> None:
    """Answers of ``_one`` in so many processes, each with another seed of Python's hashes."""
    starts = []
    for number in range(count):
        command = [sys.executable, __file__, "--one", str(1 + number % 2)]
        env = {**os.environ, "PYTHONHASHSEED": str(number)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        starts.append(json.loads(done.stdout))
        print(
            f"  {number + 1} of {count}: {'as the first' if starts[-1] == starts[0] else 'ANOTHER'}",
            flush=True,
        )
    figures = {
        **where(),
        "processes": count,
        "other_texts": sum(
            [one["tokens"] for one in start] != [one["tokens"] for one in starts[0]] for start in starts
        ),
        "other_drafts": sum(start != starts[0] for start in starts),
        "answers": [
            {"kind": one["kind"], "tokens": len(one["tokens"]), "drafts": one["drafts"]} for one in starts[0]
        ],
    }
    text = json_text(figures, indent=1) + "\n"
    print(text)
    if write:
        write_file(HERE / "results" / f"speculation_processes_{figures['date']}.json", text)


def _compare(llm: LLM, weights: str, batch: int, prompts: int, tokens: int) -> list[dict[str, Any]]:
    engine: Any = llm.engine
    text = LONG.read_text(encoding="utf-8")
    asked, params = [], []
    for i in range(prompts):
        long, at = i % 2 == 1, 700 * i % (len(text) - 14_000)
        words = text[at : at + (13_000 if long else 500)]
        ask = ("Quote the second paragraph.", "Say what this is about.", "Write it in other words.")[i % 3]
        asked.append(llm.chat_ids([{"role": "user", "content": f"{words}\n\n{ask}"}]))
        temperature = 0.0 if i % 4 < 2 else 1.0
        params.append(
            SamplingParams(
                max_tokens=tokens,
                temperature=temperature,
                seed=i,
                ignore_eos=True,
                attention="sparse" if long else "dense",
            )
        )
    found = {}
    drafters = {PLAIN: None, "suffix": engine.drafting, "suffix:7": drafting_of(llm, "suffix:7")}
    for name, drafting in drafters.items():
        llm.driver.call(lambda engine, made=drafting: setattr(engine, "drafting", made))
        found[name] = llm.generate(asked, params)
    shares = [out.metrics.blocks_read_share for out in found[PLAIN][1::2]]
    return [
        {
            "weights": weights,
            "batch": batch,
            "drafter": name,
            "tokens": sum(len(out.token_ids) for out in outputs),
            "differing": sum(
                a != b
                for out, plain in zip(outputs, found[PLAIN], strict=True)
                for a, b in zip(out.token_ids, plain.token_ids, strict=True)
            ),
            "accepted": sum(out.metrics.accepted_tokens for out in outputs),
            "most_blocks_read": round(max(shares), 3),
        }
        for name, outputs in found.items()
        if name != PLAIN
    ]


def drafting_of(llm: LLM, name: str) -> Drafting:
    """A drafter by its name here; "suffix:7" always checks seven drafts."""
    kind, _, tokens = name.partition(":")
    engine: Any = llm.engine
    found = llm._found
    made = make_drafting(
        found.ops,
        "suffix" if kind == "suffix" else f"model:{kind}",
        int(tokens) if tokens else None,
        None if kind == "suffix" else engine.drafting.drafter,
    )
    assert made is not None
    return made


def _until(seconds: float) -> Callable[[int], bool]:
    start = time.monotonic()

    def goes_on(done: int) -> bool:
        spent = time.monotonic() - start
        # Another round takes as long as those before it.
        return done == 0 or spent * (done + 1) / done < seconds

    return goes_on


def _costs(drafting: Drafting) -> dict[str, float] | None:
    """What the engine has found a draft to add, in passes without drafts."""
    return None if drafting.tokens else {"a_draft_adds": round(drafting.row_cost(1), 3)}


def _tell(done: int, total: int) -> None:
    print(f"  {done} of {total} at most", flush=True)


def _table(found: Sequence[Measured]) -> str:
    lines = [
        "| kind | temperature | drafter | tokens/s | speed-up | tokens a pass | right | other tokens |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        right = "–" if one.right is None else f"{one.right:.0%}"
        what = [one.case.kind, f"{one.case.temperature:g}", one.drafter, f"{one.rate:.1f}"]
        what += [f"{one.speed_up:.2f}x", f"{one.accept_length:.2f}", right, str(one.differing)]
        lines.append(f"| {' | '.join(what)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
