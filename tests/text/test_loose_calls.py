"""Calls as models write them: read where one reading alone is possible; drafts in reasoning are none."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from minicpm4 import LLM
from minicpm4.testing import ScriptedEngine, byte_text
from minicpm4.text import ChatTemplate, Tokenizer, marks_of, parse_tool_calls, split_reasoning
from minicpm4.text.loose_json import JSON_BLANKS, LooseJsonError, read_values
from minicpm4.text.pycalls import PYTHON_BLANKS, parse_calls
from minicpm4.text.reasoning import MARKS
from minicpm4.text.replies import ReplyReader
from minicpm4.text.toolcalls import CALL_MARKS
from tests.growth import TIMES, is_linear


def block(source: str) -> str:
    return f"<|tool_call_start|>\n```python\n{source}\n```\n<|tool_call_end|>\n"


def tagged(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ('{"name": "f", "arguments": {"a": "1\n2\t3"}}', [("f", {"a": "1\n2\t3"})]),
        ('{"name": "f", "arguments": {"a": 1}}}', [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": 1}}\n]}', [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": 1,},}', [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": [1, 2,]}}', [("f", {"a": [1, 2]})]),
        ('{"name": "f"}\n{"name": "g", "arguments": {"b": 2}}', [("f", {}), ("g", {"b": 2})]),
        ('{"name": "f"}, {"name": "g"},', [("f", {}), ("g", {})]),
        ('{"name": "f"}}\n{"name": "g"}}', [("f", {}), ("g", {})]),
        ('[{"name": "f"}]\n[{"name": "g"}]', [("f", {}), ("g", {})]),
        ('{"name": "f"}\n<tool_call>\n{"name": "g"}', [("f", {}), ("g", {})]),
        ("{'name': 'f', 'arguments': {'a': True, 'b': None}}", [("f", {"a": True, "b": None})]),
        ('{"name": "f", "arguments": {"a": [False], "b": "it\\\'s"}}', [("f", {"a": [False], "b": "it's"})]),
        ('{name: "f", arguments: {a: 1}}', [("f", {"a": 1})]),
        ('```json\n{"name": "f"}\n```', [("f", {})]),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1,}"}}', [("f", {"a": 1})]),
        ('{"name": "f", "parameters": {"a": 1}}', [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": "\\ud83d\\ude00\n"}}', [("f", {"a": "😀\n"})]),
        ("{'name': 'f', 'arguments': {'a': '\\ud83d\\ude00\\n\\u0041'}}", [("f", {"a": "😀\nA"})]),
        ('{"name": "f", "arguments": {"a": 1, "a": 1}}', [("f", {"a": 1})]),
    ],
)
def test_json_that_reads_in_one_way_alone(source, calls):
    reply = parse_tool_calls(f"<tool_call>{source}</tool_call>")
    assert [(call.name, call.arguments) for call in reply.calls] == calls
    assert (reply.notes, reply.content) == ((), "")


@pytest.mark.parametrize(
    "source",
    [
        '{"name": "f", "arguments": {"a": 1}, "arguments": {"a": 2}}',
        '{"name": "f", "arguments": {"a": 1, "a": 2}}',
        '{"name": "f", "arguments": {"a": 1, "a": true}}',
        "{'name': 'f', 'arguments': {'a': " + "1" * 5000 + "}}",
        '{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}',
        '{"name": "f", "args": {"a": 1}}',
        '{"name": "f", "arguments": {"a": "he said "no" twice"}}',
        '{"name": "f", "arguments": {"a": "C:\\new\\dir\\q"}}',
        '{"name": "f", "arguments": {"a": "\\x41"}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": 1}}, "b": 2}',
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": "f", "arguments": {"a": 1,, "b": 2}}',
        '{"name": "f", "arguments": {"a": [1 2]}}',
        '{"name": "f", "arguments": {"a": x}}',
        '{"name": "f"} and {"name": "g"}',
        '{"name": "f"}; rm',
        "{'name': 'f', 'arguments': {'b': " + "[" * 70 + "]" * 70 + "}}",
        "{name: 'f'}" * 129,
    ],
)
def test_json_of_more_than_one_reading_stays_text(source):
    text = f"see <tool_call>{source}</tool_call>"
    reply = parse_tool_calls(text)
    assert (reply.calls, reply.content) == ((), text) and "could not be read" in reply.notes[0]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ('f(a="one\ntwo")', {"a": "one\ntwo"}),
        ("f(a='''x\ny''', b='p\r\nq # no')  # it's", {"a": "x\ny", "b": "p\r\nq # no"}),
        ("f(a='say \\'hi\\'\nbye', b={'k': \"v\nw\"})", {"a": "say 'hi'\nbye", "b": {"k": "v\nw"}}),
        ("f(a=1))", {"a": 1}),
        ('f(a="x\ny"))', {"a": "x\ny"}),
        ("f(a='x\\\r\ny\nz\\\\\nw')", {"a": "xy\nz\\\nw"}),
        ("f(a={'b': 1, 'b': 1})", {"a": {"b": 1}}),
    ],
)
def test_python_that_reads_in_one_way_alone(source, arguments):
    reply = parse_tool_calls(block(source))
    assert [(call.name, call.arguments) for call in reply.calls] == [("f", arguments)] and not reply.notes


@pytest.mark.parametrize(
    "source",
    [
        'f(a="x)\ng(b="y")',
        "f(a=r'x\ny')",
        "f(a=1)))",
        "f(a=[1))",
        "f(a='x\n",
        "f(a=f'x\ny')",
        "f(a={'b': 1, 'b': 2})",
        "f(a='p', b=\\)",
        "f(\\)",
        "f(a=1\\)",
        "f(]",
        "f(a=1}",
    ],
)
def test_python_of_more_than_one_reading_stays_text(source):
    reply = parse_tool_calls(block(source))
    assert not reply.calls and "could not be read" in reply.notes[0]


SPACES = [char for char in map(chr, range(0x10000)) if char.isspace()]  # as str.strip has them

AROUND = ["{0}{1}", "{1}{0}", "```\n{1}\n```{0}", "```{0}\n{1}\n```"]


@given(st.sampled_from(SPACES), st.sampled_from(AROUND))
def test_blanks_around_calls_are_those_of_their_language(char, around):
    """What strips a block knows no more blanks than what reads it."""
    for source, blanks in (("f(a=1)", PYTHON_BLANKS), ('{"name": "f", "arguments": "{}"}', JSON_BLANKS)):
        opening, closing = ("<tool_call>", "</tool_call>") if "{" in source else CALL_MARKS[0]
        reply = parse_tool_calls(opening + around.format(char, source) + closing)
        assert [call.name for call in reply.calls] == (["f"] if char in blanks else [])
        assert bool(reply.notes) == (char not in blanks)


ENDS_OF_LINES = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # as str.splitlines has them, Python's lexer does not


@given(st.data())
def test_python_values_are_those_of_python_whatever_is_in_them(data):
    """Several calls in several lines, with every character that something takes for the end of a line."""
    texts = st.text(st.sampled_from("a\"'\\#,(" + ENDS_OF_LINES) | st.characters(codec="utf-8"), max_size=8)
    written = st.sampled_from([repr, lambda text: json.dumps(text, ensure_ascii=False), raw])
    between = st.sampled_from([", ", ",\n", ",\x0c ", ",  # \u2028\n"])
    wanted, lines = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        values = data.draw(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=3))
        arguments = {f"a{i}": value for i, value in enumerate(values)}
        sources = [
            f"{name}=[{data.draw(between).join(data.draw(written)(text) for text in value)}]"
            for name, value in arguments.items()
        ]
        assert [ast.literal_eval(s.partition("=")[2]) for s in sources] == list(arguments.values())
        wanted.append(("f", [], arguments))
        lines.append(f"f({data.draw(between).join(sources)})")
    assert parse_calls(data.draw(st.sampled_from(["\n", "; ", "\r\n", "\n# \u2028\n"])).join(lines)) == wanted


def raw(text: str) -> str:
    """A literal in which only what must be escaped is."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\0": "\\0"}
    return '"' + "".join("\\x00" if char == "\0" else escapes.get(char, char) for char in text) + '"'


HUGE = 960_000
LONG = {  # so many characters, about
    "spoken of": lambda size: "x<think>" * (size // 8),
    "two kinds": lambda size: "a<think>b[THINK]" * (size // 16),
    "opened": lambda size: "<tool_call>" * (size // 11),
    "bad blocks": lambda size: "<tool_call>{</tool_call>" * (size // 24),
    "closed": lambda size: "<tool_call>{'a': '" + "</tool_call>" * (size // 12) + "'}</tool_call>",
    "a list": lambda size: (
        '<tool_call>{"name": "f", "arguments": {"x": [' + "1," * (size // 2) + "1]}}}</tool_call>"
    ),
    "brackets": lambda size: "<tool_call>{}" + "}" * (size // 4) + "</tool_call>",
    "a number": lambda size: "<tool_call>{'name': 'f', 'arguments': {'x': " + "1" * size + "}}</tool_call>",
    "quotes": lambda size: '<|tool_call_start|>f(a="\n' + "'" * size + ")<|tool_call_end|>",
    "three quotes": lambda size: (
        '<|tool_call_start|>f(a="\n' + '\\"""x" ' * (size // 7) + ")<|tool_call_end|>"
    ),
    "bad ends": lambda size: (
        ("<|tool_call_start|>f(a" + ",a" * 4000 + "<|tool_call_end|>") * (size // 60_000)
    ),
    "ends": lambda size: "<|tool_call_start|>f(a='" + "<|tool_call_end|>" * (size // 17) + "')",
}


@pytest.mark.parametrize("name", LONG)
def test_time_is_linear_in_length(name):
    assert is_linear(LONG[name], parse_tool_calls, HUGE // TIMES)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_what_is_drafted_while_thinking_is_no_call(opening, closing):
    draft, real = "I could " + tagged("draft") + block("draft()"), tagged("real")
    for text in (
        f"{opening}\n{draft}\n{closing}\n\nSo: {real}",
        f"{draft}\n{closing}\nSo: {real}",
        f"I could <tool_call> or not\n{closing}\nSo: {real}",
        f"So: {opening}{draft}{closing}{real}",
        f"So: {real}\n{opening}\n{draft}",
        f"So: {real}\n{opening}{draft}{closing}\n{opening}{draft}{closing}",
    ):
        reply = parse_tool_calls(text)
        assert [call.name for call in reply.calls] == ["real"], text
        assert reply.content == "So:" and reply.thought.startswith("I could") and not reply.notes
    assert parse_tool_calls(draft, starts_inside=True).calls == ()
    assert parse_tool_calls(f"{opening}{draft}").calls == ()
    assert split_reasoning(f"{opening}a{closing}b") == ("a", "b")
    assert split_reasoning(f"a{closing}b", starts_inside=True) == ("a", "b")


def test_a_reply_that_opens_again_what_the_prompt_has_opened():
    text = "\n<think>\nHm " + tagged("f") + "</think>\nYes"
    reply = parse_tool_calls(text, starts_inside=True)
    assert (reply.content, reply.calls) == ("Yes", ()) and reply.thought == "Hm " + tagged("f")


def test_marks_that_are_text():
    about = 'write(text="<think>no</think>\\n</think>")'
    for text in (block(about), tagged("write", '{"text": "<think>no</think>\\n</think>"}')):
        reply = parse_tool_calls(text)
        assert [call.arguments for call in reply.calls] == [{"text": "<think>no</think>\n</think>"}]
        assert reply.thought == ""
    reply = parse_tool_calls("the mark <think> opens it. " + tagged("f"))
    assert [call.name for call in reply.calls] == ["f"] and reply.content == "the mark <think> opens it."
    reply = parse_tool_calls(tagged("f") + "</think>", starts_inside=False)
    assert [call.name for call in reply.calls] == ["f"] and reply.content == "</think>"
    own = ("<<", ">>")
    assert parse_tool_calls(f"<<{tagged('draft')}>>{tagged('f')}", marks=[own]).calls[0].name == "f"
    assert len(parse_tool_calls("x <think>" * 100_000).content) == 900_000


HEAD = "{% for m in messages %}<|{{ m.role }}|>\n"
TAIL = "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
TEMPLATES = {
    "qwen": (
        HEAD
        + "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
        + TAIL,
        MARKS[0],
    ),
    "own": (HEAD + "{% if m.reasoning %}<musing>{{ m.reasoning }}</musing>{% endif %}" + TAIL, None),
    "opened": (
        HEAD
        + "{% if m.reasoning_content %}[[mull]]{{ m.reasoning_content }}[[/mull]]{% endif %}"
        + TAIL
        + "[[mull]]\n",
        ("[[mull]]", "[[/mull]]"),
    ),
    "none": (HEAD + TAIL, MARKS[0]),
    "refuses": ("{{ raise_exception('no') }}{% if 1 %}", MARKS[0]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_are_found_by_rendering(name):
    source, first = TEMPLATES[name]
    found = marks_of(ChatTemplate(source + "{% endif %}"))
    assert found[0] == (first or ("<musing>", "</musing>")) and set(MARKS) <= set(found)
    draft = f"{found[0][0]}{tagged('draft')}{found[0][1]}{tagged('real')}"
    assert [call.name for call in parse_tool_calls(draft, marks=found).calls] == ["real"]


def test_marks_that_are_special_tokens():
    """Decoded text leaves them out; the reader does not."""
    backend = byte_text().tokenizer.backend
    names = ("[THINK]", "[/THINK]", "<tool_call>", "</tool_call>")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer = Tokenizer(backend)
    reader = ReplyReader(tokenizer, None)
    reply = f"[THINK]or {tagged('draft')}[/THINK]So: {tagged('real')}</s>"
    ids = tokenizer.encode(reply, add_special_tokens=False)
    found = reader.parse(tokenizer.decode(ids), ids)
    assert [call.name for call in found.calls] == ["real"] and found.content == "So:"
    prompt = tokenizer.encode("<|im_start|>assistant\n[THINK]\n", add_special_tokens=False)
    assert reader.parse("or " + tagged("draft"), prompt=prompt).calls == ()
    assert reader.parse("plain", tokenizer.encode("plain"), prompt=prompt[:-2]).content == "plain"


def test_an_answer_is_taken_apart():
    engine = ScriptedEngine([f"<think>or {tagged('draft')}</think>So: {tagged('real')}"])
    llm = LLM.over(engine, engine.text, name="scripted")
    reply = llm.parse_reply(llm.chat([{"role": "user", "content": "q"}]))
    assert [call.name for call in reply.calls] == ["real"]
    assert reply.content == "So:" and reply.thought.startswith("or ")


parts = st.one_of(
    st.sampled_from(["text ", "\n", " {", '"', "say </tool_call> "]).map(lambda text: (text, None)),
    st.sampled_from(["f", "g"]).map(lambda name: (tagged(name), name)),
    st.sampled_from(["f", "g"]).map(lambda name: (block(f"{name}()"), name)),
    st.sampled_from(MARKS).map(lambda pair: (f"\n{pair[0]}{tagged('no')} so {block('no()')}{pair[1]}", None)),
)


@settings(max_examples=300)
@given(opened=st.booleans(), told=st.lists(parts, max_size=8))
def test_calls_of_any_reply(opened, told):
    text = "".join(part for part, _ in told)
    if opened:
        text = f"hm {tagged('no')} so\n</think>\n{text}"
    reply = parse_tool_calls(text)
    assert [call.name for call in reply.calls] == [name for _, name in told if name] and not reply.notes


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\'\""), max_size=6)
tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def loosely(value, quote: str, python: bool) -> str:
    """``value`` as a model may write it: control characters raw, a comma after the last item, …"""
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, list):
        return "[" + "".join(loosely(item, quote, python) + ", " for item in value) + "]"
    if isinstance(value, dict):
        pairs = [(loosely(key, quote, python), loosely(item, quote, python)) for key, item in value.items()]
        return "{" + "".join(f"{key}: {item}, " for key, item in pairs) + "}"
    return repr(value) if python else json.dumps(value)


@settings(max_examples=300)
@given(
    found=st.lists(tables, min_size=1, max_size=3),
    quote=st.sampled_from("'\""),
    python=st.booleans(),
    between=st.sampled_from(["\n", ", ", "}\n", "\n<tool_call>\n"]),
)
def test_loosely_written_values_come_back(found, quote, python, between):
    text = between.join(loosely(value, quote, python) for value in found)
    assert read_values(text, ["<tool_call>"]) == found


def _once(pairs):
    if len(dict(pairs)) < len(pairs):
        raise RecursionError("a name twice")  # which JSON leaves open
    return dict(pairs)


@settings(max_examples=500)
@given(source=st.text("{}[]:,'\"\\ntu1.e-x \n", max_size=24) | tables.map(json.dumps))
def test_what_json_reads_is_read_the_same(source):
    try:
        strict = json.loads(source, object_pairs_hook=_once)
    except RecursionError:
        return
    except ValueError:
        try:
            read_values(source)
        except LooseJsonError:
            return
    else:
        assert read_values(source) == [strict]
