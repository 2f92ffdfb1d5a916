"""Writing functions: a model's code is run against tests, in the sandbox (HumanEval, arXiv 2107.03374).

A problem is a function's head with a docstring; the model writes the body, or, asked as a chat, the function
in a block of code. Tests run in a sandbox of their own, so what the code does to its process passes nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4 import LLM, SamplingParams
from minicpm4.config.strict import from_table, require
from minicpm4.engine.prompts import Prompt
from minicpm4.errors import ConfigError, Minicpm4Error, RequestError
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.files import Kept, json_text, parse_json, read_bytes
from minicpm4.sandbox import Limits, judge_function

__all__ = ["STYLES", "Answer", "Problem", "ask", "pass_at_one", "read_problems", "settings_hash"]

MAX_BYTES = 64 << 20
MAX_PROBLEMS = 100_000
STYLES = ("chat", "complete")
# Where a completed body ends: the next thing that stands at the margin (HumanEval's own list).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```", "\nassert", "\n@")
ASK = (
    "Complete this Python function. Answer with the whole function in one block of code.\n\n"
    "```python\n{}\n```"
)
_BLOCK = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)
_FIELDS = ("task_id", "prompt", "test", "entry_point")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """``prompt``: imports, helpers and the function's head; ``tests``: Python with ``check(candidate)``."""

    task: str
    prompt: str
    tests: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model wrote (``text``), the code that was run, and how that went."""

    task: str
    sample: int
    text: str
    code: str
    passed: bool
    why: str
    tokens: int


def read_problems(file: Path) -> list[Problem]:
    """Problems in HumanEval's layout: JSON lines, gzip or not. Raises ConfigError with the line."""
    content = read_bytes(file, MAX_BYTES, ConfigError)
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(content, file)
    found = []
    for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
        if line.strip():
            where = f"{file} line {number}"
            found.append(_problem(parse_json(line.encode(), where, ConfigError), where))
    require(
        0 < len(found) <= MAX_PROBLEMS,
        f"{file} has {len(found):,} problems",
        f"1 to {MAX_PROBLEMS:,} are read",
    )
    tasks = [one.task for one in found]
    require(len(set(tasks)) == len(tasks), f"{file} has a task_id twice")
    return found


def _unpacked(content: bytes, file: Path) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as source:
            found = source.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} is no whole gzip file: {error}") from None
    require(len(found) <= MAX_BYTES, f"{file} is more than {MAX_BYTES:,} bytes unpacked")
    return found


def _problem(raw: Any, where: str) -> Problem:
    remedy = f"each line has {', '.join(_FIELDS)}, as HumanEval.jsonl"
    require(isinstance(raw, Mapping), f"{where} is no table", remedy)
    for name in _FIELDS:
        value = raw.get(name)
        require(
            isinstance(value, str) and 0 < len(value) <= 1_000_000,
            f"{where}: {name} is no text, or an empty one",
            remedy,
        )
    require(raw["entry_point"].isidentifier(), f"{where}: entry_point is no name of a function")
    return Problem(task=raw["task_id"], prompt=raw["prompt"], tests=raw["test"], name=raw["entry_point"])


def settings_hash(llm: LLM, problems: Sequence[Problem], style: str, params: SamplingParams) -> str:
    """Of all that decides a score beside the weights: template, tasks, tokenizer, sampling. Results of
    different hashes are not to be compared."""
    vocabulary = llm.tokenizer.vocab_size
    parts = {
        "problems": [asdict(one) for one in problems],
        "style": style,
        "ask": ASK if style == "chat" else STOPS,
        "template": _rendered(llm) if style == "chat" else "",
        "tokenizer": [vocabulary, llm.tokenizer.encode(problems[0].prompt)],
        "sampling": {name: repr(value) for name, value in asdict(params).items()},
    }
    return hashlib.sha256(json_text(parts, sort_keys=True).encode()).hexdigest()[:16]


def _rendered(llm: LLM) -> list[int]:
    """The template as it shows: the tokens of one conversation."""
    return llm.chat_ids([{"role": "user", "content": "hello"}])


def ask(
    llm: LLM,
    problems: Sequence[Problem],
    kept: Kept,
    *,
    style: str,
    params: SamplingParams,
    samples: int = 1,
    limits: Limits | None = None,
    together: int = 8,
    tick: Callable[[int], object] = lambda done: None,
    until: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """``samples`` answers to each problem, ``together`` at a time; each is kept when it is judged, and found
    there again. Ends early where ``until`` says so."""
    wanted = [(problem, sample) for problem in problems for sample in range(samples)]
    done: dict[tuple[str, int], Answer] = {}
    for problem, sample in wanted:
        found = kept.get(lambda value: from_table(Answer, value, "it", any_text=True), problem.task, sample)
        if found is not None:
            done[problem.task, sample] = found
    tick(len(done))
    left = [one for one in wanted if (one[0].task, one[1]) not in done]
    with ThreadPoolExecutor(2) as judges:
        for begin in range(0, len(left), together):
            if until():
                break
            for answer in _answers(llm, left[begin : begin + together], style, params, limits, judges):
                kept.put(asdict(answer), answer.task, answer.sample)
                done[answer.task, answer.sample] = answer
            tick(len(done))
    return [done[one[0].task, one[1]] for one in wanted if (one[0].task, one[1]) in done]


def _answers(
    llm: LLM,
    asked: Sequence[tuple[Problem, int]],
    style: str,
    params: SamplingParams,
    limits: Limits | None,
    judges: ThreadPoolExecutor,
) -> Iterator[Answer]:
    """One that the model cannot be asked, as where it does not fit, has not passed: "refused"."""
    left: list[tuple[Problem, int, list[int], SamplingParams]] = []
    for problem, sample in asked:
        wanted = replace(params, seed=_seed(params.seed, sample))
        ids = llm.prompt_ids(_prompt(llm, problem, style))
        try:
            llm.checked([ids], wanted)
        except RequestError as error:
            why = f"refused: {error}"
            yield Answer(task=problem.task, sample=sample, text="", code="", passed=False, why=why, tokens=0)
        else:
            left.append((problem, sample, ids, wanted))
    if not left:
        return
    outputs = llm.generate([one[2] for one in left], [one[3] for one in left])
    code = [code_of(out.text, one[0], style) for one, out in zip(left, outputs, strict=True)]
    verdicts = judges.map(
        lambda problem, text: judge_function(
            text, problem.tests, problem.name, context=problem.prompt, limits=limits
        ),
        [one[0] for one in left],
        code,
    )
    for (problem, sample, *_), out, text, verdict in zip(left, outputs, code, verdicts, strict=True):
        yield Answer(
            task=problem.task,
            sample=sample,
            text=out.text,
            code=text,
            passed=verdict.passed,
            why=verdict.why,
            tokens=len(out.token_ids),
        )


def _seed(seed: int | None, sample: int) -> int | None:
    return None if seed is None else seed + sample


def _prompt(llm: LLM, problem: Problem, style: str) -> Prompt:
    if style == "chat":
        return llm.chat_ids([{"role": "user", "content": ASK.format(problem.prompt.strip())}])
    return problem.prompt


def code_of(text: str, problem: Problem, style: str) -> str:
    """What is run of an answer: the prompt, whose imports and helpers it may use, and what the model wrote:
    a body, or, of a chat, the block that has the function, else the first, else all of it."""
    if style == "complete":
        ends = [text.find(stop) for stop in STOPS]
        cut = min((end for end in ends if end >= 0), default=len(text))
        return problem.prompt + text[:cut] + "\n"
    blocks = _BLOCK.findall(text.rpartition("</think>")[2])  # what was only thought of is no answer
    defined = re.compile(rf"^(?:async )?def {re.escape(problem.name)}\b", re.MULTILINE)
    named = [one for one in blocks if defined.search(one)]
    code: str = (named or blocks or [text])[0]
    return f"{problem.prompt}\n\n{code}\n" if defined.search(code) else f"{problem.prompt}{code}\n"


def pass_at_one(answers: Sequence[Answer]) -> tuple[float, float | None]:
    """The share that passed, averaged over problems, and half the width of its 95% interval over problems
    (None of one). Raises Minicpm4Error where there is no answer."""
    by_task: dict[str, list[bool]] = {}
    for one in answers:
        by_task.setdefault(one.task, []).append(one.passed)
    if not by_task:
        raise Minicpm4Error("no answer to count", "give more time")
    return mean_with_interval([sum(each) / len(each) for each in by_task.values()])
