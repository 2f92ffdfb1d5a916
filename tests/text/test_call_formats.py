"""Calls in each model's own format: found by rendering, read whole and while they are written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from minicpm4.text.call_formats import CallFormat, Tag, call_format_of
from minicpm4.text.loose_json import JSON_BLANKS
from minicpm4.text.reasoning import MARKS
from minicpm4.text.reply_stream import ReplyPart, ReplyStream
from minicpm4.text.toolcalls import ToolCall, parse_tool_calls
from tests.text.call_templates import ENDS, GIVEN, NEWER, PLAIN, TOOLS, answer, template
from tests.text.call_templates import KINDS as OLDER
from tests.text.chats import sources

KINDS = (*OLDER, *NEWER)
CALLS = {
    "one": [("write-file", GIVEN)],
    "plain": [("write-file", PLAIN)],
    "none given": [("now", {})],
    "several": [("now", {}), ("write-file", GIVEN), ("write-file", PLAIN)],
}


def form_of(name: str) -> CallFormat:
    found = call_format_of(template(name), ENDS)
    assert found is not None
    return found


def test_what_templates_show() -> None:
    qwen, llama, python = form_of("qwen2_5"), form_of("llama3_1"), form_of("minicpm3")
    assert (qwen.kind, qwen.opening, qwen.closing, qwen.blocks) == (
        "json",
        "<tool_call>",
        "</tool_call>",
        True,
    )
    assert qwen.before == '<tool_call>\n{"name": "' and qwen.between == f"{qwen.after}\n{qwen.before}"
    assert llama.is_bare and llama.tag == "<|python_tag|>" and llama.between is None
    assert llama.middle == '", "parameters": '
    assert (python.kind, python.opening, python.between) == ("python", "<|tool_call_start|>", ")\n")
    assert python.python_words
    xml = form_of("minicpm5")
    assert xml.argument == Tag('<param name="', '">', "</param>") and not xml.python_words
    assert (xml.before, xml.middle, xml.after) == ('<function name="', '">', "</function>")
    assert xml.opening == "<function name=" and xml.between == f"</function>\n{xml.before}"


def test_what_newer_templates_show() -> None:
    array, named, numbered = form_of("mistral_v3"), form_of("named"), form_of("numbered")
    assert (array.opening, array.id_before, array.after) == ("[TOOL_CALLS]", ', "id": "', '"}]')
    assert array.between == '"}, {"name": "' and array.has_ids and not array.blocks
    assert (named.kind, named.before, named.middle, named.after) == ("named", "[TOOL_CALLS]", "[ARGS]", "")
    assert named.between == "[TOOL_CALLS]" and named.blocks and not named.has_ids
    assert (numbered.middle, numbered.id_after, numbered.has_ids) == ("[CALL_ID]", "[ARGS]", True)
    python, bare = form_of("pythonic"), form_of("bare_pythonic")
    assert (python.opening, python.closing, python.between) == ("<|python_start|>", "<|python_end|>", "), ")
    assert bare.is_bare and (bare.before, bare.after) == ("[", ")]")


@pytest.mark.parametrize("name", sorted({*sources()} - {*KINDS, "falcon3", "nemotron", "qwq"}))
def test_other_templates_have_no_format(name: str) -> None:
    assert call_format_of(template(name), [*ENDS, "<|eot|>"]) is None


def test_an_empty_thought_is_no_part_of_a_call() -> None:
    assert form_of("qwq").before == form_of("qwen2_5").before


def written(name: str, case: str, content: str = "") -> str:
    calls = CALLS[case]
    if form_of(name).between is None and len(calls) > 1:
        pytest.skip("its template has one call an answer")
    return answer(template(name), calls, content)


def expected(case: str) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name=name, arguments=given) for name, given in CALLS[case])


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("name", KINDS)
def test_whole_replies_are_read(name: str, case: str) -> None:
    text = written(name, case)
    reply = parse_tool_calls(text, TOOLS, form=form_of(name))
    assert (reply.calls, reply.content, reply.notes) == (expected(case), "", ())


def parts_of(text: str, seed: int, **options: Any) -> list[ReplyPart]:
    """A reply's parts, its text cut at random."""
    stream, at, rng = ReplyStream(marks=MARKS, tools=TOOLS, **options), 0, random.Random(seed)
    parts: list[ReplyPart] = []
    while at < len(text):
        size = rng.choice((1, 2, 3, 7, 40))
        parts += stream.push(text[at : at + size])
        at += size
    return parts + stream.finish()


def told(parts: list[ReplyPart]) -> list[tuple[str, str]]:
    """Names and joined arguments of the calls, as a client puts them together."""
    calls: list[tuple[str, str]] = []
    for part in parts:
        if part.name:
            calls.append((part.name, ""))
        if part.arguments:
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return calls


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("name", KINDS)
def test_pieces_joined_are_the_whole(name: str, case: str, held: bool) -> None:
    text, first = written(name, case), None
    for seed in range(40):
        parts = parts_of(text, seed, form=form_of(name), held=held)
        calls = told(parts)
        assert [(one, json.loads(given)) for one, given in calls] == CALLS[case]
        assert tuple(part.call for part in parts if part.call is not None) == expected(case)
        assert not any(part.content.strip() for part in parts)
        first = first or calls
        assert calls == first  # to the letter


@pytest.mark.parametrize("name", KINDS)
def test_held_calls_are_told_while_they_are_written(name: str) -> None:
    text = written(name, "one")
    stream = ReplyStream(marks=MARKS, tools=TOOLS, form=form_of(name), held=True)
    seen = [(at, part) for at, char in enumerate(text) for part in stream.push(char)]
    begins = next(at for at, part in seen if part.name)
    arguments = [at for at, part in seen if part.arguments]
    assert text.index("write-file") < begins <= text.index("path")
    assert len(arguments) > 20 and arguments[0] < text.index("/tmp/a") + 2


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", [one for one in KINDS if not form_of(one).is_bare])
def test_text_around_calls_is_content(name: str, held: bool) -> None:
    text = f"So < this: {written(name, 'one')}\n\nand <that>"
    for seed in range(20):
        parts = parts_of(text, seed, form=form_of(name), held=held)
        assert "".join(part.content for part in parts) == "So < this:and <that>"
        assert json.loads(told(parts)[0][1]) == GIVEN
    whole = parse_tool_calls(text, TOOLS, form=form_of(name))
    assert whole.content.split() == ["So", "<", "this:", "and", "<that>"] and len(whole.calls) == 1


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 5}',
        '{"name": "write',
        "{not JSON",
        "[1, 2]",
        '{"name": "now", "parameters": {}} is a call',
        "So <|python_tag|>",
        "",
    ],
)
def test_other_json_is_no_bare_call(text: str, held: bool) -> None:
    form = form_of("llama3_1")
    if not (held and "is a call" in text):  # no grammar lets that happen
        parts = parts_of(text, 1, form=form, held=held)
        assert "".join(part.content for part in parts) == text.strip() and told(parts) == []
    assert parse_tool_calls(text, TOOLS, form=form).content == text.strip()


@pytest.mark.parametrize("held", [True, False])
def test_a_bare_call_may_stand_behind_the_python_tag(held: bool) -> None:
    text = '<|python_tag|>{"name": "now", "parameters": {}}'
    assert told(parts_of(text, 3, form=form_of("llama3_1"), held=held)) == [("now", "{}")]
    assert parse_tool_calls(text, TOOLS, form=form_of("llama3_1")).calls == expected("none given")


BARE = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (BARE, 1),
        (f"\n{BARE}\n", 1),
        ('{"name": "Bob"}', 0),
        ('{"name": "nowhere", "arguments": {}}', 0),
        ('{"name": "no', 0),
        ('[{"name": "now", "arguments": {}}]', 0),
    ],
)
def test_a_call_whose_marks_are_forgotten(text: str, calls: int, held: bool) -> None:
    form = form_of("qwen2_5")
    whole = parse_tool_calls(text, TOOLS, form=form)
    parts = parts_of(text, 5, form=form, held=held)
    assert len(whole.calls) == len(told(parts)) == calls
    content = "".join(part.content for part in parts).strip()
    assert content == whole.content == ("" if calls else text)
    assert parse_tool_calls(text, TOOLS).content == text.strip()  # nobody knows how that model calls
    assert parse_tool_calls(text, TOOLS, form=form_of("minicpm5")).content == text.strip()


def test_several_bare_calls_are_read_where_nothing_holds_them() -> None:
    text = '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}'
    assert len(parse_tool_calls(text, TOOLS, form=form_of("llama3_1")).calls) == 2
    assert len(told(parts_of(text, 0, form=form_of("llama3_1")))) == 2


@pytest.mark.parametrize("name", KINDS)
def test_a_call_that_is_cut_off_has_no_end(name: str) -> None:
    text = written(name, "one")
    for stop in range(text.index("path") + 6, text.index("0.5")):
        parts = parts_of(text[:stop], stop, form=form_of(name), held=True)
        ((called, given),) = told(parts)
        assert called == "write-file" and json.dumps(GIVEN, ensure_ascii=False).startswith(given)
        assert not any(part.call or part.content for part in parts)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("<function name='write-file'><param name='path'>a</param></function>", {"path": "a"}),
        (
            '<function name="write-file">\n <param name="path">5</param>\n'
            ' <param name="lines">[1]</param>\n</function>',
            {"path": "5", "lines": [1]},
        ),
        (
            '<function name="write-file"><param name="text">a &lt; b &amp;&amp; c</param></function>',
            {"text": "a < b && c"},
        ),
        ('<function name="write-file"><param name="hard">True</param></function>', {"hard": True}),
        ('<function name="write-file"><param name="hard">maybe</param></function>', {"hard": "maybe"}),
        ('<function name="write-file"><param name="note">null</param></function>', {"note": None}),
        ('<function name="write-file"><param name="new">7</param></function>', {"new": 7}),
        (
            '<function name="write-file"><param name="text"><![CDATA[</function>]]></param></function>',
            {"text": "</function>"},
        ),
        ('<function name="other"><param name="a">x</param></function>', {"a": "x"}),
        ('<function name="write-file"><param name="path">1e999</param></function>', {"path": "1e999"}),
        (
            '<function name="write-file"><param name="hard">true\u2003</param></function>',
            {"hard": "true\u2003"},
        ),
    ],
)
def test_xml_is_read_as_models_write_it(text: str, given: dict[str, Any]) -> None:
    reply = parse_tool_calls(text, TOOLS, form=form_of("minicpm5"))
    assert [call.arguments for call in reply.calls] == [given] and not reply.content


@pytest.mark.parametrize(
    "text",
    [
        '<function name="f">',
        '<function name="f"><param name="a">1</function>',
        '<function name="f"><param name="a">1</param><param name="a">2</param></function>',
        '<function name="f">words</function>',
        '<function name="f"><param name="a"><![CDATA[x</param></function>',
        '<function name="write-file"><param name="lines">[1e999]</param></function>',
        '<function name="write-file"><param name="more">{"a": -1e999}</param></function>',
        '<function name="now">\xa0</function>',
        '<function name="write-file">\x85<param name="path">a</param></function>',
    ],
)
def test_xml_that_is_no_call_stays_text(text: str) -> None:
    reply = parse_tool_calls(text, TOOLS, form=form_of("minicpm5"))
    assert (reply.calls, reply.content, len(reply.notes)) == ((), text, 1)


@pytest.mark.parametrize("name", [one for one in KINDS if form_of(one).kind == "named"])
def test_blanks_between_marks_are_those_of_json(name: str) -> None:
    whole = written(name, "plain")
    form = form_of(name)
    at = whole.index("{", whole.index(form.middle))
    for char in map(chr, range(0x10000)):
        if char.isspace():
            reply = parse_tool_calls(whole[:at] + char + whole[at:], TOOLS, form=form)
            assert bool(reply.calls) == (char in JSON_BLANKS), repr(char)


def test_another_model_reads_no_xml() -> None:
    text = '<function name="f"><param name="a">1</param></function>'
    assert parse_tool_calls(text, TOOLS, form=form_of("qwen2_5")).content == text


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_whatever_comes_nothing_is_raised(name: str, held: bool) -> None:
    form, rng = form_of(name), random.Random(7)
    text = written(name, "one")
    bits = [
        *text[::7],
        form.before,
        form.after,
        form.middle,
        "<![CDATA[",
        "]]>",
        '"',
        "\\",
        "}",
        "\n",
        "null",
    ]
    for seed in range(300):
        broken = list(text)
        for _ in range(rng.choice((1, 2, 9, 60))):
            at = rng.randrange(len(broken))
            broken[at : at + rng.choice((0, 1, 5))] = [rng.choice(bits)]
        made = "".join(broken)
        parse_tool_calls(made, TOOLS, form=form)
        for call in (part.call for part in parts_of(made, seed, form=form, held=held)):
            assert call is None or isinstance(call.arguments, dict)


def test_long_white_space_takes_no_time() -> None:
    text = "<function name=" + " " * 500_000 + '<param name="'
    assert parse_tool_calls(text, TOOLS, form=form_of("minicpm5")).calls == ()
