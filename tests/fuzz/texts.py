"""Readers of texts: tokenizers and their settings, chat templates, calls of tools, schemas."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from minicpm4.text import ChatTemplate, parse_tool_calls
from minicpm4.text.model_text import ModelText
from minicpm4.text.template import load_chat_template
from tests.fixtures.byte_tokenizer import write_tokenizer
from tests.fuzz.calls import ODD as ODD_CHARS
from tests.fuzz.calls import check_calls, draw_calls
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import dumped, mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import MOST, Reader, check_quotes
from tests.text.call_templates import TOOLS
from tests.text.test_call_formats import form_of

_ADDED = {
    "256": {"content": "<s>", "special": True},
    "257": {"content": "</s>", "special": True, "lstrip": False},
}
SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "special": True},
    "pad_token": None,
    "add_bos_token": True,
    "add_eos_token": False,
    "additional_special_tokens": ["<x>"],
    "extra_special_tokens": {"image_token": "<i>"},
    "added_tokens_decoder": _ADDED,
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


_form_of = cache(form_of)


@cache
def _tokenizer() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder, 300)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def _draw_tokenizer(rng: Random) -> bytes:
    files = dict(_tokenizer())
    name = rng.choice(
        ["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "other"]
    )
    if name == "tokenizer.json":
        table = json.loads(files[name])
        part = rng.choice(list(table))
        if rng.random() < 0.3:
            token = rng.choice(list(table["model"]["vocab"]))
            table["model"]["vocab"][token] = rng.choice(
                [-1, 0, 1 << 20, 1 << 30, (1 << 31) - 1, (1 << 32) - 1]
            )
        else:
            table[part] = mutated_value(rng, table[part])
        files[name] = dumped(table).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            files[name] = mutated_bytes(rng, files[name], len(files[name]))
    elif name == "tokenizer_config.json":
        files[name] = mutated_json(rng, SETTINGS)
    elif name == "added_tokens.json":
        files[name] = mutated_json(rng, {"<s>": 256, "</s>": 257, "<new>": 300})
        files.pop("tokenizer_config.json", None)
    else:
        other = rng.choice(
            ["special_tokens_map.json", "chat_template.json", "generation_config.json", "config.json"]
        )
        tables: dict[str, Any] = {
            "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
            "chat_template.json": {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
            "generation_config.json": {"eos_token_id": [257], "temperature": 1.0},
            "config.json": {"model_type": "llama", "vocab_size": 300, "eos_token_id": 257},
        }
        files[other] = mutated_json(rng, tables[other])
    return packed(files)


def read_tokenizer(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    text = ModelText(folder)
    tokenizer = text.tokenizer
    for parse in (False, True):
        ids = tokenizer.encode("hi <s> \u2028é", parse_special=parse)
        tokenizer.decode(ids)
    if text.has_chat_template:
        text.template.render([{"role": "user", "content": "a"}])


# fmt: off
_PIECES = [
    "{{ messages }}", "{{ messages[0].content|%s }}", "{%% for m in messages %%}", "{%% endfor %%}",
    "{%% if tools %%}", "{%% else %%}", "{%% endif %%}", "{%% set x = %s %%}", "{{ x }}",
    "{{ x|%s }}", "{{ %s }}", "{{ %s|%s }}", "{%% set ns = namespace(a=%s) %%}", "{{ ns.a }}",
    "{{ x[%s] }}", "{{ raise_exception(x) }}", "{{ strftime_now('%%Y') }}", "{%% generation %%}",
    "{%% endgeneration %%}", "{{- bos_token -}}", "{%% macro f(a) %%}{{ a }}{%% endmacro %%}",
    "{{ f(%s) }}", "{%% break %%}", "{{ x.%s }}", "{{ '%%s'|format(%s) }}",
]
_FILTERS = [
    "tojson", "trim", "upper", "list", "length", "join", "sort", "unique", "batch(9)", "slice(9)",
    "center(99)", "indent(9)", "int", "float", "string", "map('upper')", "select", "replace('a','bb')",
    "wordwrap(2)", "pprint", "sum", "reverse", "first", "last", "items", "dictsort", "groupby(0)",
    "abs",
]
# fmt: on
_VALUES = [
    "1",
    "'a'",
    "[]",
    "[1,2]",
    "{}",
    "{'a':1}",
    "none",
    "true",
    "messages",
    "x",
    "range(9)",
    "x*x",
    "x~x",
    "[x]*9",
]
_VALUES += [
    "(1,)*9",
    "1e999",
    "9**9",
    "'%s'*9999",
    "cycler()",
    "joiner()",
    "dict(a=1)",
    "lipsum()",
    "x.__class__",
    "-x",
]
_ATTRIBUTES = [
    "content",
    "items()",
    "split()",
    "format(1)",
    "keys",
    "append(1)",
    "__init__",
    "encode()",
    "title()",
]


def draw_template(rng: Random) -> bytes:
    """A template of pieces, few of them right."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        piece = rng.choice(_PIECES)
        while "%s" in piece.replace("%%s", ""):
            before, _, after = piece.partition("%s")
            pool = _FILTERS if before.endswith("|") else _ATTRIBUTES if before.endswith("x.") else _VALUES
            piece = before + rng.choice(pool) + after
        parts.append(piece.replace("%%", "%"))
    text = "".join(parts)
    content = text.encode()
    return mutated_bytes(rng, content, len(content)) if rng.random() < 0.3 else content


def _read_template(case: bytes, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_bytes(case)
    template = load_chat_template(folder)
    if template is not None:
        template.render([{"role": "user", "content": "a"}], tools=TOOLS)
    ChatTemplate(case.decode("utf-8", "replace")).render([{"role": "user", "content": "a"}])


# fmt: off
_MARKS = [
    "<tool_call>", "</tool_call>", "<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>",
    "[THINK]", "[/THINK]", "```json", "```", "```python", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]",
    "<function=", "<function", "name=\"now\">", "</function>", "<parameter=path>", "</parameter>",
    "<param", "name=\"text\">", "</param>", "<![CDATA[", "]]>", "<|python_tag|>", "<|tool▁call▁begin|>",
    "<|tool▁sep|>",
]
# fmt: on
_WRITTEN = [
    json.dumps({"name": "write-file", "arguments": {"path": "a", "lines": [1]}}),
    '{"name": "now", "arguments": {}}',
]
_FORMS = ["none", "qwen2_5", "llama3_1", "hermes"]


def draw_reply(rng: Random) -> bytes:
    """An answer with calls, marks and pieces of both, in any order."""
    parts = []
    for _ in range(rng.randint(1, 12)):
        way = rng.random()
        if way < 0.5:
            parts.append(rng.choice(_MARKS).replace("\u00a0", " "))
        elif way < 0.7:
            parts.append(draw_calls(rng))
        elif way < 0.85:
            parts.append(rng.choice(_WRITTEN))
        else:
            parts.append("".join(rng.choice("a\n {}[]\"',:\\" + ODD_CHARS) for _ in range(rng.randrange(9))))
    text = "".join(parts)
    at, size = rng.randrange(len(text) + 1), rng.choice([0, 0, 1, 5])
    return (text[:at] + text[at + size :]).encode("utf-8", "surrogatepass")


def _read_reply(case: bytes, folder: Path) -> None:
    text = case.decode("utf-8", "surrogatepass")
    for name in _FORMS:
        form = None if name == "none" else _form_of(name)
        for tools in (None, TOOLS):
            for inside in (None, True, False):
                reply = parse_tool_calls(text, tools, form=form, starts_inside=inside)
                for call in reply.calls:
                    json.loads(call.arguments_text)
                for note in reply.notes:
                    check_quotes(note, case)
                    assert len(note) <= MOST, f"a note of {len(note)} characters: {note[:200]}"


def _read_calls(case: bytes, folder: Path) -> None:
    check_calls(case.decode("utf-8", "surrogatepass"))


READERS = [
    Reader(name="tokenizer", draw=_draw_tokenizer, read=read_tokenizer),
    Reader(name="template", draw=draw_template, read=_read_template),
    Reader(name="replies", draw=draw_reply, read=_read_reply),
    Reader(name="calls", draw=lambda rng: draw_calls(rng).encode("utf-8", "surrogatepass"), read=_read_calls),
]
