"""Conversations made with tools of servers: forward from queries, in reverse from calls.

Forward, a query comes first: written for a tool by a model, or given with the answer that is known. The agent
works on it, its calls are carried out, and what it did is kept if it ended in an answer, that one. In reverse
the calls come first: of one tool, or of two tools of a server, the second after the first has answered; then
the model writes what a user would have said who wanted just that. Calls are asked for as any.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minicpm4.agents.mcp.agent import SYSTEM, Agent, AgentOptions, called
from minicpm4.agents.mcp.conversations import check_conversation
from minicpm4.agents.mcp.data.named import answers, names_tool, unnamed
from minicpm4.agents.mcp.data.talks import Dropped, Talk
from minicpm4.agents.mcp.models import Model, Reply
from minicpm4.agents.mcp.search import best_tools
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.tools import Tool, fingerprint
from minicpm4.agents.mcp.transcript import Step
from minicpm4.agents.mcp.writing import queries_for, varied, written
from minicpm4.config.strict import from_table, require
from minicpm4.errors import ConfigError, RequestError
from minicpm4.files import Kept
from minicpm4.text.call_messages import call_message

__all__ = ["Maker", "Query", "pairs_of"]

OFFERED = 10  # tools in a conversation made in reverse, those that are called among them
_QUERY = {
    "type": "object",
    "properties": {"request": {"type": "string", "minLength": 8, "maxLength": 600}},
    "required": ["request"],
    "additionalProperties": False,
}
_CALL = (
    "Make a call of {name} as somebody may need it in daily work. Choose real, definite values, and no "
    "placeholders.{others}"
)
_THEN = "Now make a call of {name} that goes on from this result and uses something of it."
_WRITE = (
    "These calls of tools were made, and these are their results:\n{calls}\nWrite the one request of a user "
    "that leads to exactly these calls. Name every value that is in the arguments as it is there, say "
    'nothing of tools, and do not tell the result. Answer with {{"request": "…"}} and nothing else.'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What a user wants. ``tool``: which it was written for; ``answer``: the one that is known."""

    text: str
    tool: str = ""
    answer: str = ""


@dataclass(kw_only=True, slots=True)
class Maker:
    """``kept``: where each piece is put, and found again; ``verify``: a query made in reverse is put to the
    model, which has to call the same tool; ``step``: is told of calls."""

    model: Model
    box: Toolbox
    kept: Kept
    options: AgentOptions = field(default_factory=AgentOptions)
    verify: bool = True
    step: Callable[[Step], None] | None = None

    async def queries(self, tools: Sequence[Tool], count: int) -> list[Query | Dropped]:
        """``count`` queries for each tool, by the model."""
        found: list[Query | Dropped] = []
        for tool in tools:
            texts = self.kept.get(_texts, "queries", self._key(tool), count)
            if texts is None:
                try:
                    texts = await queries_for(self.model, tool, count)
                except (ConfigError, RequestError) as error:
                    found.append(Dropped(reason="not written", where=tool.called, why=str(error)[:500]))
                    continue
                self.kept.put(texts, "queries", self._key(tool), count)
            found += [Query(text=text, tool=tool.called) for text in texts]
        return found

    async def forward(self, query: Query) -> Talk | Dropped:
        """What the agent makes of a query."""
        key = ("forward", asdict(query), self._key(*self.box.tools.values()))
        return await self._once(key, query.text, lambda: self._worked(query))

    async def reverse(self, tools: Sequence[Tool], number: int) -> Talk | Dropped:
        """The conversation of that number that needs these tools of one server, in this order; its first call
        is another than those of the numbers before."""
        where = f"{', '.join(tool.called for tool in tools)}, number {number}"
        key = ("reverse", [self._key(tool) for tool in tools])
        before = [self.kept.get(_table, "arguments", *key, i) for i in range(number)]

        def keep(arguments: Mapping[str, Any]) -> None:
            self.kept.put(dict(arguments), "arguments", *key, number)

        return await self._once((*key, number), where, lambda: self._turned(tools, before, where, keep))

    async def _once(
        self, key: tuple[Any, ...], where: str, make: Callable[[], Awaitable[Talk | Dropped]]
    ) -> Talk | Dropped:
        found = self.kept.get(_piece, *key)
        if found is None:
            try:
                made = await make()
            except (ConfigError, RequestError) as error:  # not kept: it is tried again
                return Dropped(reason="not written", where=where, why=str(error)[:500])
            self.kept.put(asdict(made), *key)
            return made
        return found

    async def _worked(self, query: Query) -> Talk | Dropped:
        done = await Agent(self.model, self.box, self.options, told=self.step).run(query.text)
        dropped = _Drops(query.text)
        if any(step.denied for step in done.steps):
            return dropped("refused")
        if done.steps and done.steps[-1].failed:
            return dropped("failed call", done.steps[-1].text)
        if query.tool and query.tool not in {step.tool for step in done.steps}:
            return dropped("not called", query.tool)
        if done.ended != "answered" or not done.answer.strip():
            return dropped("not answered", done.ended)
        if query.answer and not answers(done.answer, query.answer):
            return dropped("other answer", f"{done.answer!r:.200} in place of {query.answer!r:.200}")
        return Talk(messages=done.messages, tools=done.tools, where=query.text)

    async def _turned(
        self,
        tools: Sequence[Tool],
        before: Sequence[Any],
        where: str,
        keep: Callable[[Mapping[str, Any]], None],
    ) -> Talk | Dropped:
        """Calls, then the query, then the answer; ``keep`` is given the first call's arguments."""
        dropped, made = _Drops(where), list[tuple[Step, list[dict[str, Any]]]]()
        asked = _CALL.format(name=tools[0].called, others=_others(before))
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        for tool in tools:
            if made:
                messages.append({"role": "user", "content": _THEN.format(name=tool.called)})
            model = self.model if made or not before else varied(self.model, len(before))
            reply = await model.answer(messages, [tool.function], must_call=True)
            if not reply.calls:
                return dropped("not written", reply.unread or reply.text)
            number, call = reply.calls[0]
            if not made:
                keep(call.arguments)
            step, result = await called(self.box, number, call, self.step)
            if step.failed:
                return dropped("refused" if step.denied else "failed call", step.text)
            pair = [call_message([(number, call.name, call.arguments)]), result]
            messages += pair
            made.append((step, pair))
        query = await self._request([step for step, _ in made])
        if any(names_tool(query, tool) for tool in tools):
            return dropped("tool named", query)
        told = [query]
        for step, _ in made:
            if why := unnamed(step.arguments, told):
                return dropped("unnamed value", f"{why}, in {query!r:.200}")
            told.append(step.text)
        return await self._told(query, tools, [one for _, pair in made for one in pair], dropped)

    async def _request(self, steps: Sequence[Step]) -> str:
        calls = "\n".join(
            f"{one.tool} {json.dumps(one.arguments, ensure_ascii=False)} gave: {one.text[:1000]}"
            for one in steps
        )
        found = await written(self.model, _WRITE.format(calls=calls), _QUERY, 300)
        return str(found.get("request") or "").strip()

    async def _told(
        self, query: str, tools: Sequence[Tool], pairs: Sequence[dict[str, Any]], dropped: _Drops
    ) -> Talk | Dropped:
        """The conversation with an answer at its end, if the query leads where it should."""
        offered = self._offered(tools, query)
        opening = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query}]
        if self.verify:
            first = await self.model.answer(opening, offered, must_call=True)
            if not first.calls or first.calls[0][1].name != tools[0].called:
                return dropped("other tool", first.calls[0][1].name if first.calls else first.text)
        messages = [*opening, *pairs]
        end: Reply = await self.model.answer(messages, offered)
        if end.calls or end.cut or not end.text:
            return dropped("not answered", end.text)
        messages.append({"role": "assistant", "content": end.text})
        return Talk(messages=messages, tools=offered, where=query)

    def _offered(self, tools: Sequence[Tool], query: str) -> list[dict[str, Any]]:
        """The tools that are called, and others of all servers that the query may be about."""
        rest = [one for one in self.box.tools.values() if one not in tools]
        some = [*tools, *best_tools(rest, query, OFFERED - len(tools))]
        return [one.function for one in sorted(some, key=lambda tool: tool.called)]

    def _key(self, *tools: Tool) -> list[str]:
        return sorted(fingerprint(self.box.servers[tool.server].spec, tool.parts) for tool in tools)


def _texts(value: Any) -> list[str]:
    require(isinstance(value, list) and all(isinstance(one, str) for one in value), "it is no list of texts")
    return list(value)


def _table(value: Any) -> dict[str, Any]:
    require(isinstance(value, dict), "it is no table")
    return dict(value)


def _piece(value: Any) -> Talk | Dropped:
    """Raises ConfigError."""
    if "reason" in value:
        return from_table(Dropped, value, "it", any_text=True)
    talk = from_table(Talk, value, "it", any_text=True)
    check_conversation(talk.messages, talk.tools, "it")
    return Talk(**value)  # with lists for what were lists


class _Drops:
    """Says of one conversation why it is not kept."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, reason: str, why: str = "") -> Dropped:
        return Dropped(reason=reason, where=self.where, why=why[:500])


def _others(before: Sequence[Any]) -> str:
    known = [json.dumps(one, ensure_ascii=False)[:200] for one in before if one is not None]
    if not known:
        return ""
    told = "; ".join(known[-5:])
    return f" Other calls than these: {told}."


def pairs_of(tools: Sequence[Tool]) -> Iterator[tuple[Tool, Tool]]:
    """Two tools of one server, in each order."""
    for one in tools:
        for other in tools:
            if one is not other and one.server == other.server:
                yield one, other
