"""What of a message reaches a template: arguments as text or a table, null and absent, reasoning, parts."""

from __future__ import annotations

import json

import pytest

from minicpm4.errors import RequestError, TextError
from minicpm4.text import ChatTemplate
from minicpm4.text.messages import check_messages
from tests.text.test_template import render

EACH = "{% for m in messages %}{% for c in m.tool_calls or [] %}BODY{% endfor %}{% endfor %}"

PLUS = EACH.replace("BODY", "<{{ c.function.name + c.function.arguments }}>")

PRINTED = EACH.replace("BODY", "<{{ c.function.arguments }}>")

JSON = EACH.replace("BODY", "<{{ c.function.arguments | tojson }}>")

WHOLE = EACH.replace("BODY", "<{{ c.function | tojson }}>")

ITEMS = EACH.replace("BODY", "{% for k, v in c.function.arguments.items() %}<{{ k }}={{ v }}>{% endfor %}")

FILTER = EACH.replace("BODY", "{% for k, v in c.function.arguments | items %}<{{ k }}={{ v }}>{% endfor %}")

EITHER = EACH.replace(
    "BODY",
    "<{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}>",
)

SILENT = "{% for m in messages %}{{ m.role }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "as_text", "as_table"),
    [
        (PLUS, '<f{"a":  1}>', '<f{"a": 1}>'),
        (PRINTED, '<{"a":  1}>', '<{"a": 1}>'),
        (JSON, '<{"a": 1}>', '<{"a": 1}>'),
        (WHOLE, '<{"name": "f", "arguments": {"a": 1}}>', '<{"name": "f", "arguments": {"a": 1}}>'),
        (ITEMS, "<a=1>", "<a=1>"),
        (FILTER, "<a=1>", "<a=1>"),
        (EITHER, '<{"a":  1}>', '<{"a": 1}>'),
        (SILENT, "assistant", "assistant"),
    ],
)
def test_arguments_are_text_or_a_table_as_the_template_takes_them(source, as_text, as_table):
    for arguments, expected in (('{"a":  1}', as_text), ({"a": 1}, as_table)):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": "None", "tool_calls": [call]}
        assert render(source, [message]) == expected
        bare = {"role": "assistant", "tool_calls": [call["function"]]}  # without a function's table
        assert render(source.replace("c.function", "c"), [bare]) == expected


def test_arguments_that_are_no_json_reach_templates_that_take_text():
    call = {"function": {"name": "f", "arguments": '{"a": '}}
    assert render(PLUS, [{"role": "assistant", "tool_calls": [call]}]) == '<f{"a": >'
    for source in (JSON, ITEMS, SILENT):
        with pytest.raises(RequestError, match=r"messages\[0\].tool_calls\[0\]: the arguments are not JSON"):
            render(source, [{"role": "assistant", "tool_calls": [call]}])
    for number, told in (("NaN", "NaN is no"), ("1e999", "1e999 is more than"), ("1" * 301, "301 digits")):
        strange = {"name": "f", "arguments": f'{{"a": {number}}}'}
        with pytest.raises(RequestError, match=f"the arguments are not JSON: .*{told}"):
            render(JSON, [{"role": "assistant", "tool_calls": [{"function": strange}]}])
    for empty in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": ""}):
        assert render(JSON, [{"role": "assistant", "tool_calls": [{"function": empty}]}]) == "<{}>"


NULL, ABSENT, EMPTY = {"content": None}, {}, {"content": ""}


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("{{ m.content is none }}", (NULL, ABSENT, EMPTY), ("True", "False", "False")),
        ("{{ m.content is defined }}", (NULL, ABSENT, EMPTY), ("True", "False", "True")),
        ("{{ 'content' in m }}", (NULL, ABSENT, EMPTY), ("True", "False", "True")),
        ("<{{ m.content }}>", (NULL, ABSENT, EMPTY), ("<>", "<>", "<>")),
        ("<{{ m.content | trim }}>", (NULL, ABSENT, EMPTY), ("<>", "<>", "<>")),
        ("{{ '<' + m.content + '>' }}", (NULL, ABSENT, EMPTY), ("<>", "<>", "<>")),
        # DeepSeek's: what has no content is a call.
        ("{{ 'call' if m.content is none else '<' + m.content }}", (NULL, ABSENT), ("call", "call")),
        ("{% if m.content is string %}s{% else %}{% for p in m.content %}{% endfor %}e{% endif %}",
         (NULL, ABSENT, EMPTY), ("e", "e", "s")),
    ],
)  # fmt: skip
def test_null_is_null_and_an_absent_key_is_absent(source, given, expected):
    source = "{% for m in messages %}" + source + "{% endfor %}"
    for fields, text in zip(given, expected, strict=True):
        assert render(source, [{"role": "assistant", **fields}]) == text
        assert render(source, [{"role": "tool", **fields}]) == text


def test_null_stays_in_its_place():
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    assert render(source, [message]) == json.dumps(message)


@pytest.mark.parametrize(
    "field", ["tool_calls", "reasoning_content", "reasoning", "name", "function_call", "x"]
)
def test_what_is_null_or_no_call_at_all_is_absent(field):
    source = "{{ 'FIELD' in messages[0] }}{{ messages[0].FIELD is defined }}".replace("FIELD", field)
    for empty in (None, *([[], ()] if field == "tool_calls" else [])):
        assert render(source, [{"role": "assistant", "content": "a", field: empty}]) == "FalseFalse"


@pytest.mark.parametrize("given", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_one_under_all_its_names(given, read):
    message = {"role": "assistant", "content": "a", "reasoning": None, given: "hm"}
    assert render("{{ messages[0]['READ'] }}".replace("READ", read), [message]) == "hm"
    both = {"role": "assistant", "content": "a", "reasoning_content": "1", "reasoning": "2"}
    assert render("{{ messages[0].reasoning_content }}{{ messages[0].reasoning }}", [both]) == "12"


def test_parts_stay_a_list_where_the_template_reads_one():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i "}]
    listed = "{% for p in messages[0].content %}[{{ p.text | trim }}]{% endfor %}"
    either = (
        "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}" + listed + "{% endif %}"
    )
    for source, expected in [
        (listed, "[H][i]"),
        (either, "[H][i]"),
        ("{{ messages[0].content | trim }}", "Hi"),
        ("{{ messages[0].content + '.' }}", "Hi ."),
        ("{{ messages[0].content | tojson }}", '"Hi "'),
        ("nothing", "nothing"),
    ]:
        assert render(source, [{"role": "user", "content": parts}]) == expected


ONLY_PARTS = {
    "loops": "{{ m.role }}:{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% elif p['type'] == 'image' %}<image>{% endif %}{% endfor %};",
    "first": "{{ m.role }}:{{ m['content'][0]['text'] }};",
    "selects": "{{ m.role }}:{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text')"
    " | join }};",
    "fails": "{{ m.role }}:{{ m.content[0].text + '' }};",
    "user's": "{{ m.role }}:{% if m.role == 'user' %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %};",
}


@pytest.mark.parametrize("name", ONLY_PARTS)
def test_plain_text_reaches_templates_that_read_only_parts(name):
    template = ChatTemplate("{% for m in messages %}" + ONLY_PARTS[name] + "{% endfor %}")
    for plain in ("Hi", "q\"{'}'\n", "a<b"):
        texts = [("system", "S"), ("user", plain), ("assistant", "Yo"), ("user", "u2")]
        messages = [{"role": role, "content": text} for role, text in texts]
        own = str.strip if name == "user's" else str
        expected = "".join(f"{role}:{own(text)};" for role, text in texts)
        assert template.render(messages) == expected
        traced = template.trace_checked(check_messages(messages), None)
        assert "".join(traced) == expected and not traced.covers(len("system:S"), len("system:S;user:H"))
    assert "S" not in template.render([{"role": "user", "content": "Hi"}])


def test_what_a_template_leaves_out_or_writes_otherwise_is_not_given_as_parts():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>t</think>A"},
    ]
    each = "{% for m in messages %}BODY{% endfor %}"
    for body, expected in (
        ("{{ m.content if m.role == 'user' }}", "Hi"),
        ("{{ m.content | upper }}", "SHI<THINK>T</THINK>A"),
        ("{{ m.content.split('</think>')[-1] }}", "SHiA"),
        ("{{ m.content | tojson }}", '"S""Hi""<think>t</think>A"'),
        ("{{ m.content | length }}", "1217"),
        ("{% if m.content is string %}-{% else %}{{ m.content[0].text }}{% endif %}", "SHi<think>t</think>A"),
    ):
        assert render(each.replace("BODY", body), messages, add_generation_prompt=False) == expected
    with pytest.raises(TextError, match="only parts"):
        render(
            "{% if messages[0].content is string %}{{ raise_exception('only parts') }}{% endif %}", messages
        )


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "Hi"
