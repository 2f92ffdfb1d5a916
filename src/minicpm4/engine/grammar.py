"""Answers that follow a grammar: a JSON schema, a regular expression, a Lark or GBNF grammar, a choice; and
calls of tools that follow their schemas.

The package llguidance compiles them and says which tokens may come next; it is imported at the first use.
What does not compile is refused before any work, and whatever goes wrong later ends the request by name: no
answer is written without the grammar that it was asked for.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Protocol

from minicpm4.engine.call_grammar import forced_grammar, openings
from minicpm4.engine.calls import Calls
from minicpm4.engine.either import Either
from minicpm4.engine.grammar_text import READY, SQL, compile_grammar
from minicpm4.engine.held import Entry, Grammar
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.vocabulary import Vocabulary
from minicpm4.errors import RequestError, ToolSchemaError
from minicpm4.text.replies import ReplyReader
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["READY", "SQL", "Grammars"]

MAX_KEPT = 32  # compiled grammars of a model

_PLACE = re.compile(r"^at \d+\(\d+\): ")  # in the text of a grammar that nobody has seen


class TextOf(Protocol):
    """What a grammar asks of a model's text. Raises TextError where there is none."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def replies(self) -> ReplyReader: ...


class Grammars:
    """Compiles grammars for a model, and keeps the last ones. For any thread.

    ``end_ids``: the tokens that may end an answer; ``vocab_size``: logits that the model has.
    """

    def __init__(self, text: TextOf, end_ids: Collection[int], vocab_size: int) -> None:
        self._text, self.end_ids, self.vocab_size = text, frozenset(end_ids), vocab_size
        self._lock = threading.RLock()
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def check(self, params: SamplingParams) -> None:
        """Raise unless an answer can follow what ``params`` ask for: RequestError, which names the parameter
        and what in it is wrong (ToolSchemaError: the tools); UnsupportedError without llguidance; TextError
        without a tokenizer."""
        form = params.form
        if form is not None:
            self._compiled(params, form)
        if params.calls is not None:
            self._calls(params.calls, whole=params.calls.forced or form is not None)

    def start(self, params: SamplingParams, prompt: Sequence[int]) -> Grammar | None:
        """What holds the answer to ``prompt`` to its grammar; None where it has none. Raises as ``check``."""
        if params.constraint is None:
            return None
        replies = self._text.replies
        reasoning, calls = replies.reasoning(prompt), params.calls
        text = None if params.form is None else self._compiled(params, params.form)
        text_counts = params.form == "json_schema"
        if calls is None:
            return Grammar(params, self.vocabulary, reasoning, text, counts=text_counts)
        form = replies.written_form(calls.forced)
        made = self._calls(calls, whole=calls.forced or text is not None)
        once, counts = not calls.several or form.between is None, form.kind != "xml"
        if text is not None:
            heads = [head.encode() for head in form.heads(calls.schemas)]
            both = Either(made, text, heads, self.vocabulary, (counts, text_counts))
            return Grammar(params, self.vocabulary, reasoning, both, counts=counts or text_counts)
        matcher, entries = (made, ()) if calls.forced else (None, made)
        return Grammar(
            params,
            self.vocabulary,
            reasoning,
            matcher,
            entries=entries,
            marks=() if calls.forced else replies.marks,
            once=once,
            counts=counts,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """Made at the first use: 0.7 s for 49,152 tokens."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._text.tokenizer, self.end_ids, self.vocab_size)
            return self._vocabulary

    def _compiled(self, params: SamplingParams, name: str) -> Any:
        """The matcher, at its start. Nobody changes it: samples get copies."""
        value = getattr(params, name)
        key = value if isinstance(value, str) else json.dumps(value)
        return self._keep(name, key, lambda: compile_grammar(self.vocabulary.llg(name), name, value))

    def _calls(self, calls: Calls, *, whole: bool) -> Any:
        """Of calls that are the ``whole`` answer, their matcher; else the entries that lead to them. Raises
        ToolSchemaError for tools whose calls cannot be held."""
        try:
            return self._keep(f"calls {whole}", calls.key, lambda: self._compile_calls(calls, whole))
        except RequestError as error:
            raise self._refusal(calls, error) from error

    def _compile_calls(self, calls: Calls, whole: bool) -> Any:
        form, llg = self._text.replies.written_form(calls.forced), self.vocabulary.llg("calls")
        control = self._text.tokenizer.control_tokens
        if whole:
            text = forced_grammar(form, calls, control, loosely=not calls.forced)
            return compile_grammar(llg, "calls", text)
        entries = []
        for one in openings(form, calls, control):
            # What a model does with its marks forgotten is compiled where one does: the rest holds it, too.
            make = cache(partial(compile_grammar, llg, "calls", one.grammar))
            if form.is_bare or not one.first:
                make()
            entries.append(Entry(one.text.encode(), make, one.first))
        self.vocabulary.prepare(one.mark for one in entries if not one.first)
        return entries

    def _refusal(self, calls: Calls, error: RequestError) -> RequestError:
        """What is told of calls that do not compile: which tools are to blame, each of which is tried."""
        refused: dict[str, str] = {}
        for name in calls.schemas if len(calls.schemas) > 1 else ():
            one = replace(calls, names=[name], forced=True)
            try:
                self._compile_calls(one, whole=True)
            except RequestError as own:
                refused[name] = own.condition
        names = list(refused) or list(calls.schemas)
        why = next(iter(refused.values()), error.condition)
        why = _PLACE.sub("", why.removeprefix("calls ").removeprefix("cannot be followed: "))
        shown = ", ".join(map(repr, names[:5]))
        return ToolSchemaError(
            f"tools: the schema of {shown:.200} cannot be followed in calls: {why}",
            "see what is supported in docs/guide.md",
            tools=names,
        )

    def _keep(self, name: str, value: str, make: Callable[[], Any]) -> Any:
        key = name, value
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
