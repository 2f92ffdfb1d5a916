"""Text: tokenizers, chat templates, streaming decoding, reasoning and tool calls in replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm4.lazy import at_first_use

if TYPE_CHECKING:
    from minicpm4.text.chat import encode_chat
    from minicpm4.text.gguf_vocab import tokenizer_from_gguf
    from minicpm4.text.load import load_tokenizer
    from minicpm4.text.reasoning import ReasoningSplitter, marks_of, prompt_opens_reasoning, split_reasoning
    from minicpm4.text.stream import StopMatcher, StreamDecoder, cut_at_stop
    from minicpm4.text.template import ChatTemplate, chat_template_from_gguf, load_chat_template
    from minicpm4.text.tokenizer import Tokenizer
    from minicpm4.text.toolcalls import ParsedReply, ToolCall, parse_tool_calls

__all__ = [
    "ChatTemplate",
    "ParsedReply",
    "ReasoningSplitter",
    "StopMatcher",
    "StreamDecoder",
    "Tokenizer",
    "ToolCall",
    "chat_template_from_gguf",
    "cut_at_stop",
    "encode_chat",
    "load_chat_template",
    "load_tokenizer",
    "marks_of",
    "parse_tool_calls",
    "prompt_opens_reasoning",
    "split_reasoning",
    "tokenizer_from_gguf",
]

__getattr__ = at_first_use(
    __name__,
    {
        "encode_chat": "minicpm4.text.chat",
        "tokenizer_from_gguf": "minicpm4.text.gguf_vocab",
        "load_tokenizer": "minicpm4.text.load",
        "ReasoningSplitter": "minicpm4.text.reasoning",
        "marks_of": "minicpm4.text.reasoning",
        "prompt_opens_reasoning": "minicpm4.text.reasoning",
        "split_reasoning": "minicpm4.text.reasoning",
        "StopMatcher": "minicpm4.text.stream",
        "StreamDecoder": "minicpm4.text.stream",
        "cut_at_stop": "minicpm4.text.stream",
        "ChatTemplate": "minicpm4.text.template",
        "chat_template_from_gguf": "minicpm4.text.template",
        "load_chat_template": "minicpm4.text.template",
        "Tokenizer": "minicpm4.text.tokenizer",
        "ParsedReply": "minicpm4.text.toolcalls",
        "ToolCall": "minicpm4.text.toolcalls",
        "parse_tool_calls": "minicpm4.text.toolcalls",
    },
)
