"""How well a model calls tools: step by step, with the right previous steps given.

A sample is one answer of a conversation that calls tools; before it the model is shown what was said and done
as it should have been. Each call is right in its function, then in the names of its parameters, then in their
values: none of these counts where the one before is wrong. Averages weigh every call alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.models import Model, calls_of, kept_calls
from minicpm4.agents.mcp.search import best_tools
from minicpm4.agents.mcp.tools import Tool
from minicpm4.config.strict import require, shown
from minicpm4.engine.llm import LLM
from minicpm4.errors import ConfigError
from minicpm4.files import Kept, lines_of, parse_json, read_text
from minicpm4.text.messages import parsed_arguments
from minicpm4.text.pycalls import CallSyntaxError
from minicpm4.text.tool_call import written_call

__all__ = [
    "Mark",
    "Sample",
    "Scores",
    "Setting",
    "evaluate",
    "fitting",
    "offered",
    "pool_of",
    "read_pool",
    "read_samples",
    "score_of",
]

MAX_BYTES = 256 << 20
BESIDE = 8  # tokens that a template may write around a tool
OWN = "(one)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """``messages``: what was said and done before; ``calls``: the right ones, as (name, arguments);
    ``server``: whose tool the first is of."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    calls: Sequence[tuple[str, Mapping[str, Any]]]

    @property
    def server(self) -> str:
        server, apart, _ = self.calls[0][0].partition("__")
        return server if apart else OWN

    @property
    def asked(self) -> str:
        """What the user said."""
        return " ".join(str(one.get("content")) for one in self.messages if one.get("role") == "user")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One call: whether it was right, and what was called in its place (None: nothing). ``refused``: why the
    model was not asked for it, as where its prompt does not fit: it is neither right nor wrong then.
    ``cut``: the limit of tokens ended the answer before a call (None: it was kept before that was asked)."""

    server: str
    wanted: tuple[str, Mapping[str, Any]]
    given: tuple[str, Mapping[str, Any]] | None
    refused: str = ""
    cut: bool | None = None

    def __post_init__(self) -> None:
        for call in (self.wanted, self.given):
            if call is not None:
                try:
                    written_call(call[0], dict(call[1]))  # as what a model writes: values are compared
                except CallSyntaxError as error:
                    raise ConfigError(f"of a call of {shown(call[0])} {error}") from None

    @property
    def function(self) -> bool:
        return self.given is not None and self.given[0] == self.wanted[0]

    @property
    def names(self) -> bool:
        return self.function and self.given is not None and {*self.given[1]} == {*self.wanted[1]}

    @property
    def values(self) -> bool:
        return self.names and self.given is not None and _plain(self.given[1]) == _plain(self.wanted[1])


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of the calls that were asked for, 0 to 1."""

    calls: int
    function: float
    names: float
    values: float


def read_samples(file: Path) -> list[Sample]:
    """The samples of a file of conversations, a line of JSON each with ``messages`` and ``tools``, as
    ``minicpm4 mcp export --to training`` writes. Raises ConfigError."""
    found = []
    for number, line in enumerate(lines_of(read_text(file, MAX_BYTES, ConfigError)), 1):
        where = f"{file}, line {number}"
        if line.strip():
            found += _samples(parse_json(line, where, ConfigError), where)
    require(bool(found), f"{file} has no conversation with calls")
    return found


def _samples(talk: Any, where: str) -> list[Sample]:
    try:
        messages, tools = talk["messages"], talk["tools"]
        known = {tool["function"]["name"] for tool in tools}
        found = []
        for i, message in enumerate(messages):
            made = [one["function"] for one in message.get("tool_calls") or ()]
            calls = [(str(one["name"]), _table(one["arguments"])) for one in made]
            for name, _ in calls:
                told = f"{where}: messages[{i}] calls {name!r:.80}, which is not among its tools"
                require(name in known, told)
            if calls:
                found.append(Sample(messages=messages[:i], tools=tools, calls=calls))
        return found
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is no conversation with tools: {error!r:.200}") from error


def _table(arguments: Any) -> Mapping[str, Any]:
    given = parsed_arguments(arguments, "a call") if isinstance(arguments, str) else arguments
    if not isinstance(given, Mapping):
        raise TypeError("arguments are no table")
    return given


def offered(
    sample: Sample, pool: Sequence[Mapping[str, Any]], count: int | None, *, retrieve: bool = False
) -> list[Mapping[str, Any]]:
    """The tools that a sample's model is offered: its own (``count`` None); or ``count`` of ``pool``: the
    right ones and others drawn evenly, always the same for the same sample; or (``retrieve``) those that a
    search finds for what the user said, the right ones or not."""
    if count is None:
        return list(sample.tools)
    by_name = {tool["function"]["name"]: tool for tool in pool}
    if retrieve:
        tools = [_searched(tool["function"]) for tool in by_name.values()]
        return [by_name[tool.called] for tool in best_tools(tools, sample.asked, count)]
    right = dict.fromkeys(name for name, _ in sample.calls)
    rest = sorted(by_name.keys() - right.keys())
    said = sample.asked + str(len(sample.messages))
    draw = random.Random(said.encode("utf-8", "surrogatepass"))
    chosen = [*right, *draw.sample(rest, min(len(rest), max(0, count - len(right))))]
    draw.shuffle(chosen)
    return [by_name[name] for name in chosen]


def _searched(function: Mapping[str, Any]) -> Tool:
    name = str(function["name"])
    server, _, own = name.partition("__")
    return Tool(server=server, name=own, called=name, description=str(function.get("description") or ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How samples are put to a model: tools as ``offered`` has them, calls held to schemas or not."""

    count: int | None = None
    retrieve: bool = False
    held: bool = True
    must_call: bool = False


async def evaluate(
    model: Model,
    samples: Sequence[Sample],
    setting: Setting | None = None,
    *,
    pool: Sequence[Mapping[str, Any]] | None = None,
    kept: Kept | None = None,
    until: float = math.inf,
    told: Callable[[int], None] | None = None,
) -> list[Mark]:
    """A mark for each call of each sample, in order; fewer where ``until`` (by time.monotonic) came first.
    ``pool``: of which tools are offered; None: those of all samples. ``kept``: where answers are put, and
    found again. What the model refuses is told in the marks. Raises EngineError, TextError."""
    setting = setting or Setting()
    pool = pool_of(samples) if pool is None else pool
    model.hold = setting.held
    marks: list[Mark] = []
    for number, sample in enumerate(samples, 1):
        tools = offered(sample, pool, setting.count, retrieve=setting.retrieve)
        key = _digest([sample.messages, tools, setting.held, setting.must_call])
        ask = partial(calls_of, model, sample.messages, tools, must_call=setting.must_call)
        given = await kept_calls(kept, (key,), until, ask)
        if given is None:
            return marks
        for i, wanted in enumerate(sample.calls):
            mine = given.calls[i] if i < len(given.calls) else None
            how: dict[str, Any] = {"refused": given.refused, "cut": given.cut}
            marks.append(Mark(server=sample.server, wanted=wanted, given=mine, **how))
        if told is not None:
            told(number)
    return marks


def pool_of(samples: Sequence[Sample], more: Sequence[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
    """The tools of all samples, and more, each name once."""
    every = {tool["function"]["name"]: tool for tool in more}
    every |= {tool["function"]["name"]: tool for sample in samples for tool in sample.tools}
    return list(every.values())


def read_pool(file: Path) -> list[Mapping[str, Any]]:
    """Tools of a list in JSON, as ``minicpm4 mcp tools --json`` and ``mcp tasks --gold`` write it. Raises
    ConfigError."""
    found = parse_json(read_text(file, MAX_BYTES, ConfigError), str(file), ConfigError)
    try:
        functions = [one.get("function", one) for one in found]
        return [{"type": "function", "function": {**one, "name": str(one["name"])}} for one in functions]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is no list of tools: {error!r:.200}") from error


def fitting(
    llm: LLM,
    samples: Sequence[Sample],
    budget: int,
    pool: Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """How many tools are sure to fit in a prompt of ``budget`` tokens, whichever they are: the largest of the
    pool beside the longest conversation. Raises ConfigError where not even one is."""
    longest = max(len(llm.chat_ids(one.messages, tools=list(one.tools)[:1])) for one in samples)
    texts = [json.dumps(tool, ensure_ascii=False) for tool in (pool_of(samples) if pool is None else pool)]
    sizes = sorted((len(ids) + BESIDE for ids in llm.tokenizer.encode_many(texts)), reverse=True)
    totals = accumulate(sizes, initial=longest)
    count = sum(total <= budget for total in totals) - 1
    require(count > 0, f"no tool is sure to fit in {budget:,} tokens", "give a larger --context")
    return count


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def score_of(marks: Iterable[Mark]) -> Scores:
    """Shares of calls; every call that was asked for weighs alike."""
    every = [one for one in marks if not one.refused]
    count = max(1, len(every))
    return Scores(
        len(every),
        sum(one.function for one in every) / count,
        sum(one.names for one in every) / count,
        sum(one.values for one in every) / count,
    )


def _plain(value: Any) -> Any:
    """A value as it is compared: 3 and 3.0 are one, spaces around a text are none."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
