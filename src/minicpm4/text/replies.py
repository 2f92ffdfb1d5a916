"""Whole replies taken apart as their model marks them: thought, calls, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from minicpm4.text.call_formats import HERMES, PLAIN, CallFormat, call_format_of, wants_short_ids
from minicpm4.text.probes import shows_tools, switches_thinking
from minicpm4.text.reasoning import (
    MARKS,
    marks_of,
    prompt_opens_reasoning,
    split_reasoning,
    unasked_reasoning,
)
from minicpm4.text.reply_stream import ReplyStream, begins_as_calls
from minicpm4.text.stream import StreamDecoder
from minicpm4.text.template import ChatTemplate
from minicpm4.text.tokenizer import Tokenizer
from minicpm4.text.toolcalls import CALL_MARKS, ParsedReply, parse_tool_calls, schemas_of

__all__ = ["Reasoning", "ReplyReader"]

TAIL = 64  # tokens of a prompt that tell whether it opens a block of reasoning


class Reasoning(NamedTuple):
    """The block of reasoning with which an answer begins: the marks of which one ends it (none: there is no
    such block), and the token that opens it where the answer may do so or not (None: the prompt has)."""

    closing: tuple[str, ...] = ()
    opening_id: int | None = None


class ReplyReader:
    """Reads the replies of a model. ``template``: its own, which says how it marks thoughts and writes calls
    (``form``, None where it writes none that are known); None: as usual.

    Marks may be special tokens, which decoded text leaves out: they are read all the same.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.marks = MARKS if template is None else marks_of(template)
        self.form: CallFormat | None = None
        if template is not None:
            ends = [str(tokenizer.id_to_token(token)) for token in tokenizer.eos_token_ids]
            self.form = call_format_of(template, ends, self.marks)
        marks = [mark for pair in (*self.marks, *CALL_MARKS) for mark in pair]
        marks += () if self.form is None else self.form.marks
        self._shown = {
            token
            for name, token in tokenizer.control_tokens.items()
            if tokenizer.is_special(token) and any(name in mark for mark in marks)
        }

    def parse(
        self,
        text: str,
        ids: Sequence[int] = (),
        *,
        prompt: Sequence[int] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        form: CallFormat | None = None,
        either: bool = False,
        stop: str | None = None,
    ) -> ParsedReply:
        """``text``, the reply of tokens ``ids`` to ``prompt``, taken apart: ``parse_tool_calls``. ``form``:
        in which calls are written, if not the model's own. ``either`` as in ``stream``. ``stop``: the stop
        string that ended it."""
        text = self._marked(text, ids, stop)
        form, inside = form or self.form, self._opens_reasoning(prompt) or None
        if not either or form is None:
            return parse_tool_calls(text, tools, marks=self.marks, starts_inside=inside, form=form)
        thought, answer = split_reasoning(text, starts_inside=bool(inside), marks=self.marks)
        if not begins_as_calls(answer, form, schemas_of(tools or ())):
            return ParsedReply(content=answer, thought=thought)
        return replace(
            parse_tool_calls(answer, tools, marks=(), starts_inside=False, form=form), thought=thought
        )

    def apart(self, text: str, ids: Sequence[int] = (), *, prompt: Sequence[int] = ()) -> tuple[str, str]:
        """The thought and the answer of ``text``, as in ``parse``; calls stay in the answer as they stand."""
        inside = self._opens_reasoning(prompt)
        return split_reasoning(self._marked(text, ids), starts_inside=inside, marks=self.marks)

    def _marked(self, text: str, ids: Sequence[int], stop: str | None = None) -> str:
        """``text`` of tokens ``ids`` with the marks that are special tokens. It ends where ``text`` does: not
        all of the last tokens' text belongs to an answer that a stop string or token has ended."""
        own = self._tokenizer
        if self._shown.isdisjoint(ids):
            return text
        stream = StreamDecoder(own, () if stop is None else [stop], shown=self._shown, continuation=True)
        marked = "".join([*map(stream.push, ids), stream.finish()])
        plain = text if stream.stopped else own.decode(ids, continuation=True)
        return marked.removesuffix(plain[len(text) :]) if plain.startswith(text) else marked

    @property
    def marks_left_out(self) -> Set[int]:
        """The special tokens that are marks, or parts of one: decoded text leaves them out, and a reply that
        is to be streamed needs them in its text."""
        return self._shown

    def stream(
        self,
        prompt: Sequence[int],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        held_to: CallFormat | None = None,
        either: bool = False,
        forced: bool = False,
        enable_thinking: bool | None = None,
    ) -> ReplyStream:
        """Takes the reply to ``prompt`` apart while it is written. ``tools`` None: calls are not looked for.
        ``held_to``: the format in which a grammar sees to it that calls are written (``written_form``);
        ``either``: and that the answer is calls, or a text that holds none whatever stands in it;
        ``forced``: and that it is calls."""
        return ReplyStream(
            marks=self.marks,
            tools=tools,
            form=held_to or self.form,
            held=held_to is not None,
            either=either,
            forced=forced,
            enable_thinking=enable_thinking,
            starts_inside=self._opens_reasoning(prompt),
        )

    @cached_property
    def shows_tools(self) -> bool:
        """Whether prompts tell the model of its tools."""
        return self._template is None or shows_tools(self._template)

    @cached_property
    def switches_thinking(self) -> bool:
        """Whether prompts depend on ``enable_thinking``."""
        return self._template is not None and switches_thinking(self._template)

    @cached_property
    def short_ids(self) -> bool:
        """Whether calls that the model is told of later must have short ids."""
        return self._template is not None and wants_short_ids(self._template)

    def written_form(self, forced: bool) -> CallFormat:
        """The format that calls can be held to: the model's own; where nobody knows it, what many models
        know, or plain JSON for answers that must be calls."""
        return self.form or (PLAIN if forced else HERMES)

    def _opens_reasoning(self, prompt: Sequence[int]) -> bool:
        return prompt_opens_reasoning(self._tail(prompt), self.marks)

    def reasoning(self, prompt: Sequence[int]) -> Reasoning:
        """The reasoning with which the answer to ``prompt`` begins, as far as the prompt tells: it ends in an
        opening mark, or as the model's template ends a prompt whose answer may open with one."""
        tail = self._tail(prompt)
        closing = tuple(end for start, end in self.marks if prompt_opens_reasoning(tail, [(start, end)]))
        if closing:
            return Reasoning(closing)
        if self._unasked is not None and tail.endswith(self._unasked[0]):
            return self._unasked[1]
        return Reasoning()

    def _tail(self, prompt: Sequence[int]) -> str:
        return self._tokenizer.decode(list(prompt)[-TAIL:], skip_special_tokens=False, continuation=True)

    @cached_property
    def _unasked(self) -> tuple[str, Reasoning] | None:
        """How prompts end whose answers may open a block of reasoning; and that block."""
        found = None if self._template is None else unasked_reasoning(self._template, self.marks)
        if found is None:
            return None
        end, (opening, closing) = found
        token = self._tokenizer.token_to_id(opening)
        return None if token is None else (end, Reasoning((closing,), token))
