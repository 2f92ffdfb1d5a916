"""Asking a model for answers to problems, and judging what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import ConfigError
from minicpm4.evals.asking import go_on, say
from minicpm4.evals.maths.judge import Judge
from minicpm4.evals.maths.problems import Problem
from minicpm4.evals.results import hashes_of
from minicpm4.files import Kept

__all__ = ["STYLES", "Answer", "ask", "hashes"]

STYLES = ("chat", "complete")
CHAT = "{}\n\nReason step by step, and put your final answer within \\boxed{{}}."
COMPLETE = "Question: {}\nAnswer:"
STOPS = ("\nQuestion:", "\n\n\n")
# Numbers that math-verify takes for others: 3 1/2 for 2, 1 000 for 0, 1_000 for 1, 3½ for 3, 1.000.000 for 0.
_MISREAD = re.compile(
    r"[+-]?\d+((\s|\\ )+\d+[\s\d/]*|(_\d{3})+(\.\d+)?|\s*[\u00bc-\u00be\u2150-\u215e]|(\.\d+){2,})"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was said (``text``), what of it was taken for the answer (``read``), and whether that is right.
    ``cut``: the limit of tokens ended it (None: it was kept before that was asked)."""

    task: str
    text: str
    read: str
    wanted: str
    right: bool
    why: str
    tokens: int
    prompt_tokens: int
    seconds: float
    cut: bool | None = None


def hashes(llm: LLM, problems: Sequence[Problem], style: str, params: SamplingParams) -> dict[str, str]:
    """Of all that decides a score beside weights and engine (``results.hashes_of``)."""
    tasks, settings = (
        [asdict(one) for one in problems],
        [style, CHAT if style == "chat" else [COMPLETE, STOPS]],
    )
    return hashes_of(llm, tasks=tasks, settings=settings, chat=style == "chat", params=params)


def check(problems: Sequence[Problem], judge: Judge) -> None:
    """Raise ConfigError for the first whose right answer cannot be read, is not equal to itself, or would be
    taken for another."""
    for one in problems:
        if _MISREAD.fullmatch(one.answer) or not judge.judge(one.answer, f"${one.answer}$").right:
            told = (
                f"the right answer of {one.task:.60} is no mathematics that can be judged: {one.answer!r:.60}"
            )
            raise ConfigError(told, "give numbers, or LaTeX, as 1000 or 3\\frac{1}{2}")


def ask(
    llm: LLM,
    problems: Sequence[Problem],
    kept: Kept,
    judge: Judge,
    *,
    style: str,
    params: SamplingParams,
    together: int = 8,
    tick: Callable[[int], object] = lambda done: None,
    until: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """An answer to each problem, ``together`` at a time; each is kept when it is judged, and found there
    again. Ends early where ``until`` says so."""

    def answers(some: Sequence[Problem]) -> Iterator[Answer]:
        for problem, said in zip(
            some, say(llm, [_prompt(llm, one, style, params) for one in some]), strict=True
        ):
            verdict = judge.judge(problem.answer, said.answer)
            yield Answer(
                task=problem.task,
                text=said.text,
                read=verdict.read,
                wanted=problem.answer,
                right=verdict.right,
                why=said.refused or verdict.why,
                tokens=said.tokens,
                prompt_tokens=said.prompt_tokens,
                seconds=said.seconds,
                cut=said.cut,
            )

    return go_on(
        problems, Answer, lambda one: (one.task,), answers, kept, together=together, tick=tick, until=until
    )


def _prompt(
    llm: LLM, problem: Problem, style: str, params: SamplingParams
) -> tuple[list[int], SamplingParams]:
    if style == "chat":
        return llm.chat_ids([{"role": "user", "content": CHAT.format(problem.question)}]), params
    return llm.prompt_ids(COMPLETE.format(problem.question)), params.changed(stop=(*params.stop, *STOPS))
