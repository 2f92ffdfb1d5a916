"""Between text and token ids, for whoever asks an LLM in words: prompts and chats in, replies taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from minicpm4.engine.api import Text
from minicpm4.engine.outputs import RequestOutput
from minicpm4.engine.params import SamplingParams, nearest_or_sampling
from minicpm4.engine.prompts import Messages, Prompt, plain_ids
from minicpm4.errors import RequestError
from minicpm4.text.messages import check_roles, check_tools, check_variables
from minicpm4.text.replies import ReplyReader
from minicpm4.text.reply_stream import ReplyStream
from minicpm4.text.tokenizer import Tokenizer
from minicpm4.text.toolcalls import ParsedReply


@nearest_or_sampling
class Texts:
    """What an LLM knows of its model's text."""

    _text: Text

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TextError when the checkpoint has none."""
        return self._text.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._text.has_chat_template

    @property
    def chat_template(self) -> str | None:
        """The source of the checkpoint's chat template, None where it has none."""
        return self._text.chat_template

    @property
    def replies(self) -> ReplyReader:
        """What takes this model's replies apart. Raises TextError: it needs a tokenizer."""
        return self._text.replies

    @property
    def switches_thinking(self) -> bool:
        """Whether ``enable_thinking`` changes what this model is asked. Raises TextError: it needs a
        tokenizer."""
        return self._text.replies.switches_thinking

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids that ``generate`` reads for a prompt. Raises RequestError, TextError."""
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty", "give some text")
            return self._text.encode(prompt)
        return plain_ids(prompt)

    def chat_ids(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that ``chat`` reads for a conversation. ``variables``: more that the template sees,
        by name. Raises RequestError, TextError."""
        more = check_variables(variables or {})
        if isinstance(messages, Sequence) and not isinstance(messages, str | bytes):
            check_roles(messages, self.chat_template)
        return self._text.encode_chat(messages, tools=tools, enable_thinking=enable_thinking, **more)

    def chat_text(
        self,
        messages: Messages,
        *,
        enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as the template renders it, for programs that ask in text alone: a control token
        that a message spells cannot be told from the template's own there. Raises RequestError, TextError."""
        check_roles(messages, self.chat_template)
        return self._text.render_chat(messages, enable_thinking=enable_thinking, **(variables or {}))

    def reply_stream(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_thinking: bool | None = None,
    ) -> ReplyStream:
        """What takes the answer to the prompt ``ids`` apart while it is written, of which ``params`` see to
        it that marks stand in its text (``shows_marks``)."""
        calls = params.calls
        return self.replies.stream(
            ids,
            tools=tools,
            held_to=None if calls is None else self.replies.written_form(calls.forced),
            either=calls is not None and params.form is not None,
            forced=calls is not None and calls.forced,
            enable_thinking=enable_thinking,
        )

    def parse_reply(
        self, output: RequestOutput, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ParsedReply:
        """Take an answer apart: thought, calls of ``tools``, and the rest. What is drafted in a thought is no
        call. Raises RequestError, TextError."""
        prompt, known = output.prompt_token_ids, check_tools(tools)
        sample = output.outputs[0]
        return self.replies.parse(sample.text, sample.token_ids, prompt=prompt, tools=known, stop=sample.stop)

    def with_replies(
        self,
        output: RequestOutput,
        tools: Sequence[Mapping[str, Any]] | None = None,
        params: SamplingParams | None = None,
    ) -> RequestOutput:
        """The output of a chat with each sample's text taken apart, calls in the form to which ``params``
        held them. Raises TextError."""
        prompt, replies = output.prompt_token_ids, self._text.replies
        calls = None if params is None else params.calls
        form = None if calls is None else replies.written_form(calls.forced)
        tools = tools if tools is not None or calls is None else calls.tools
        either = calls is not None and params is not None and params.form is not None
        read = partial(replies.parse, prompt=prompt, tools=tools, form=form, either=either)
        most = 1 if calls is not None and not calls.several else None
        replies_read = [read(one.text, one.token_ids, stop=one.stop) for one in output.outputs]
        samples = [
            replace(one, reply=replace(reply, calls=reply.calls[:most]))
            for one, reply in zip(output.outputs, replies_read, strict=True)
        ]
        return replace(output, outputs=samples)
