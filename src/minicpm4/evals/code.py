"""Writing functions: a model's code is run against tests, in the sandbox (HumanEval, arXiv 2107.03374).

A problem is a function's head with a docstring; the model writes the body, or, asked as a chat, the function
in a block of code. Tests run in a sandbox of their own, so what the code does to its process passes nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import dedent

from minicpm4 import LLM, SamplingParams
from minicpm4.config.strict import require
from minicpm4.engine.prompts import Prompt
from minicpm4.errors import Minicpm4Error
from minicpm4.evals.asking import Said, go_on, say
from minicpm4.evals.intervals import mean_with_interval
from minicpm4.evals.results import hashes_of
from minicpm4.evals.rows import check_text, read_rows
from minicpm4.files import Kept
from minicpm4.sandbox import Limits, judge_function

__all__ = ["STYLES", "Answer", "Problem", "ask", "hashes", "pass_at_one", "read_problems", "shares"]

STYLES = ("chat", "complete")
# Where a completed body ends: what the paper of HumanEval names, and what else begins at the margin.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```", "\nassert", "\n@")
ASK = (
    "Complete this Python function. Answer with the whole function in one block of code.\n\n"
    "```python\n{}\n```"
)
# Blocks by language and content; first what is fenced within a line, whose end would begin a block. One that
# was cut goes to the end.
_BLOCK = re.compile(
    r"```[^`\n]*```|```[ \t]*(?P<language>\w*)[^`\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)",
    re.DOTALL | re.MULTILINE,
)
# What compiling raises for text that is no Python.
_BROKEN = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)
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
    """What a model wrote (``text``), the code that was run, and how that went. ``seconds``: its share of the
    time that those took which were written together; ``cut``: the limit of tokens ended it (None: it was kept
    before that was asked)."""

    task: str
    sample: int
    text: str
    code: str
    passed: bool
    why: str
    tokens: int
    prompt_tokens: int = 0
    seconds: float = 0.0
    cut: bool | None = None


def read_problems(file: Path) -> list[Problem]:
    """Problems in HumanEval's layout: JSON lines, gzip or not. Raises ConfigError with the line."""
    remedy = f"each line has {', '.join(_FIELDS)}, as HumanEval.jsonl"
    found = []
    for where, row in read_rows(file, remedy):
        task, prompt, tests, name = (check_text(row, field, where, remedy) for field in _FIELDS)
        require(name.isidentifier(), f"{where}: entry_point is no name of a function")
        one = Problem(task=task, prompt=prompt, tests=tests, name=name)
        # Neither would let any answer pass, in the sandbox.
        for what, text in (("prompt", context_of(one)), ("test", tests)):
            wrong = _why_not(text)
            require(not wrong, f"{where}: {what} is no Python: {wrong}", remedy)
        found.append(one)
    tasks = [one.task for one in found]
    require(len(set(tasks)) == len(tasks), f"{file} has a task_id twice")
    return found


def hashes(llm: LLM, problems: Sequence[Problem], style: str, params: SamplingParams) -> dict[str, str]:
    """Of all that decides a score beside weights and engine (``results.hashes_of``)."""
    tasks, settings = [asdict(one) for one in problems], [style, ASK if style == "chat" else STOPS]
    return hashes_of(llm, tasks=tasks, settings=settings, chat=style == "chat", params=params)


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
    with ThreadPoolExecutor(2) as judges:
        return go_on(
            wanted,
            Answer,
            lambda one: (one[0].task, one[1]),
            lambda some: _answers(llm, some, style, params, limits, judges),
            kept,
            together=together,
            tick=tick,
            until=until,
        )


def _answers(
    llm: LLM,
    asked: Sequence[tuple[Problem, int]],
    style: str,
    params: SamplingParams,
    limits: Limits | None,
    judges: ThreadPoolExecutor,
) -> Iterator[Answer]:
    """One that the model cannot be asked, as where it does not fit, has not passed: "refused"."""
    if style == "complete":
        params = params.changed(stop=(*params.stop, *STOPS))
    prompts = [
        (llm.prompt_ids(_prompt(llm, problem, style)), replace(params, seed=_seed(params.seed, sample)))
        for problem, sample in asked
    ]
    said = say(llm, prompts)

    def judged(problem: Problem, one: Said) -> tuple[str, bool, str]:
        if one.refused:
            return "", False, one.refused
        code = code_of(one.answer, problem, style)
        context = context_of(problem)
        verdict = judge_function(code, problem.tests, problem.name, context=context, limits=limits)
        return code, verdict.passed, verdict.why

    verdicts = judges.map(judged, [problem for problem, _ in asked], said)
    for (problem, sample), one, (code, passed, why) in zip(asked, said, verdicts, strict=True):
        yield Answer(
            task=problem.task,
            sample=sample,
            text=one.text,
            code=code,
            passed=passed,
            why=why,
            tokens=one.tokens,
            prompt_tokens=one.prompt_tokens,
            seconds=one.seconds,
            cut=one.cut,
        )


def _seed(seed: int | None, sample: int) -> int | None:
    return None if seed is None else seed + sample


def _prompt(llm: LLM, problem: Problem, style: str) -> Prompt:
    if style == "chat":
        return llm.chat_ids([{"role": "user", "content": ASK.format(problem.prompt.strip())}])
    return problem.prompt


def context_of(problem: Problem) -> str:
    """The prompt as a program of its own: with a body where it is a head alone, without a docstring."""
    with_body = f"{problem.prompt.rstrip()}\n    pass\n"
    return with_body if _why_not(problem.prompt) and not _why_not(with_body) else problem.prompt


def _why_not(text: str) -> str:
    """Why ``text`` is no Python; empty where it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "it", "exec", dont_inherit=True)
    except _BROKEN as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def code_of(text: str, problem: Problem, style: str) -> str:
    """What is run of an answer: the prompt, whose imports and helpers it may use, and what the model wrote:
    a body, or, of a chat, the block that has the function, else the first (of Python), else all of it."""
    if style == "complete":
        ends = [text.find(stop) for stop in STOPS]
        cut = min((end for end in ends if end >= 0), default=len(text))
        return problem.prompt + text[:cut] + "\n"
    defined = re.compile(rf"^(?:async )?def {re.escape(problem.name)}\b", re.MULTILINE)
    blocks = [(one["language"].lower(), one["code"]) for one in _BLOCK.finditer(text) if one["code"]]
    ours = [code for language, code in blocks if language[:2] in ("", "py")]
    every = [code for _, code in blocks]
    # A block in a list is indented whole.
    named = [one for one in (*every, *map(dedent, every)) if defined.search(one)]
    code: str = (named or ours or every or [text])[0]
    return f"{context_of(problem)}\n\n{code}\n" if defined.search(code) else f"{problem.prompt}{code}\n"


def shares(answers: Sequence[Answer]) -> dict[str, float]:
    """By task, the share of its answers that passed. Raises Minicpm4Error where there is no answer."""
    by_task: dict[str, list[bool]] = {}
    for one in answers:
        by_task.setdefault(one.task, []).append(one.passed)
    if not by_task:
        raise Minicpm4Error("no answer to count", "give more time")
    return {task: sum(each) / len(each) for task, each in by_task.items()}


def pass_at_one(answers: Sequence[Answer]) -> tuple[float, float | None]:
    """The share that passed, averaged over problems, and half the width of its 95% interval over problems
    (None of one). Raises Minicpm4Error where there is no answer."""
    return mean_with_interval(list(shares(answers).values()))
