"""Chat templates: what transformers renders, the sandbox, where templates come from."""

from __future__ import annotations

import json
import threading

import pytest

from minicpm4.errors import RequestError, TextError
from minicpm4.text import ChatTemplate, chat_template_from_gguf, load_chat_template, sandbox
from minicpm4.text.messages import check_messages
from tests.fixtures.byte_tokenizer import write_tokenizer

USER = [{"role": "user", "content": "Hi"}]
CHATML = """{%- for message in messages %}
    {%- if loop.first and enable_thinking is defined %}
[{{ enable_thinking }}]
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""


def render(source: str, messages=USER, **options) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages, **options)


def test_chatml():
    turn = "<|im_start|>user\nHi<|im_end|>\n"
    assert render(CHATML) == turn + "<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == turn
    assert render(CHATML, enable_thinking=False).startswith("[False]<|im_start|>")


def test_the_real_template_of_smollm(smollm, smollm_metadata):
    template = chat_template_from_gguf(smollm_metadata, smollm)
    assert template.render([{"role": "system", "content": "S"}, *USER]) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(USER).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # trim_blocks and lstrip_blocks
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
            "1/2False 2/2True ",
        ),
        ("{% generation %}x{% endgeneration %}y", "xy"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}", "5"),
        ("{{ messages[0]['content'] + 'x' * 3 }}{{ 7 % 4 }}{{ 2 ** 5 }}", "Hixxx332"),
        ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
        ("{{ 1 ~ 'a' ~ none }}{{ [1, 'b'] | join(', ') }}", "1aNone1, b"),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    ],
)
def test_dialect(source, expected):
    assert render(source) == expected


HUGE = {
    "type": "function",
    "function": {"name": "f", "parameters": {"n": {"maximum": 2**53 - 1, "least": -(2**63)}}},
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% macro m(v) %}{{ v.maximum }}{% endmacro %}{{ m(tools[0].function.parameters.n) }}",
            str(2**53 - 1),
        ),
        ("{% set ns = namespace(n=tools[0].function.parameters.n.least) %}{{ ns.n }}", str(-(2**63))),
        ("{{ tools[0].get('none', 9007199254740991) }}", str(2**53 - 1)),
        ("{{ tools[0].function.parameters | tojson }}", json.dumps(HUGE["function"]["parameters"])),
        ("{{ '{:,}'.format(tools[0].function.parameters.n.maximum) }}", "9,007,199,254,740,991"),
        ("{{ dict(a=tools[0].function.parameters.n.maximum).a }}", str(2**53 - 1)),
        ("{{ '%s/%02d/%.2f/%%/%r' % (messages[0].role, 7, 0.5, 'x') }}", "user/07/0.50/%/'x'"),
        ("{{ '%d' % tools[0].function.parameters.n.maximum }}", str(2**53 - 1)),
        ("{{ '%(a)5s|%-4s'|format('x', 'y') if false else '%5s|%-4s|'|format('x', 'y') }}", "    x|y   |"),
        (
            "{{ 'x'.center(5) }}{{ '7'.zfill(3) }}{{ 'a\tb'.expandtabs(4) }}{{ 'x'|center(3) }}|",
            "  x  007a   b x |",
        ),
    ],
)
def test_lawful_calls_with_huge_numbers_and_formats_pass(source, expected):
    assert render(source, tools=[HUGE]) == expected


def test_tools_and_other_variables():
    source = "{% for t in tools %}{{ t | tojson }}{% endfor %}{{ extra }}"
    tool = {"type": "function", "function": {"name": "f"}}
    assert render(source, tools=[tool], extra="!") == json.dumps(tool) + "!"
    assert render("{{ tools is none }}", tools=[]) == "True"


def test_tool_arguments_reach_the_template_as_a_table():
    source = "{{ messages[0].tool_calls[0].function.arguments.a }}{{ messages[0].content }}"
    for arguments in ({"a": 1}, '{"a": 1}'):
        call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
        assert render(source, [{"role": "assistant", "content": None, "tool_calls": [call]}]) == "1"


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


def test_named_templates():
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert template.render(USER) == "plain"
    assert template.render(USER, tools=[{"name": "f"}]) == "tools"
    assert ChatTemplate({"only": "x"}).render(USER) == "x"
    with pytest.raises(TextError, match=r"chat templates \['a', 'b'\], none is the default"):
        ChatTemplate({"a": "", "b": ""}).render(USER)
    with pytest.raises(TextError, match=r"list of chat templates is empty\. pass a raw prompt"):
        ChatTemplate({})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ missing.attribute }}", "refuses the messages: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "fails on these messages: division by zero"),
        ("{{ messages + 1 }}", "fails on these messages: can only concatenate list"),
        ("{{ ''.__class__.__mro__ }}", "forbids: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "forbids: access to attribute 'append'"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "takes too much: RecursionError"),
        ("{% for i in range(999999) %}{% endfor %}", "takes too much|too big|fails on"),
        ("{{ 'x' * 100000000 }}", "builds a value of 100000000 items"),
        ("{{ 10 ** 100000 }}", "raises a number to a huge power"),
        ("{{ '%999999999s' % 'x' }}", "builds a value of"),
        ("{{ '%.999999999d'|format(1) }}", "builds a value of"),
        ("{{ '%*d' % (999999999, 1) }}", "formats with a width of *"),
        ("{{ 'x'.ljust(999999999) }}", "pads to 999999999 characters, which is too many"),
        ("{{ 'x'|center(width=999999999) }}", "pads to 999999999 characters"),
        (
            "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
            "ran for over 0.3 s",
        ),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "output is over 67108864 characters"),
    ],
)
def test_failures_say_why(source, message):
    with pytest.raises(TextError, match=message):
        ChatTemplate(source, seconds=0.3 if "0.3" in message else 60).render(USER)


def test_doubling_is_bounded(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_OUTPUT_CHARS", 10_000)
    loop = "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = OP %}{% endfor %}"
    block = "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"
    sources = [loop.replace("OP", op) for op in ("ns.s + ns.s", "ns.s ~ ns.s", "[ns.s, ns.s] | join")]
    for source in [*sources, loop.replace("{% set ns.s = OP %}", block)]:
        with pytest.raises(TextError, match="which is too large"):
            render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", r"chat template 'default' has a syntax error in line 1: Expected an expression"),
        ("\n{% endfor %}", "syntax error in line 2"),
        ("x" * (1 << 20) + "x", "is not text of at most 1048576 characters"),
        (5, "list of"),
    ],
)
def test_sources_that_are_no_template(source, message, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    with pytest.raises(TextError, match=message):
        load_chat_template(tmp_path)


def test_where_a_folder_keeps_its_template(tmp_path):
    assert load_chat_template(tmp_path) is None
    write_tokenizer(tmp_path, 300)
    assert load_chat_template(tmp_path).render(USER).startswith("<s><|im_start|>user\nHi")
    assert load_chat_template(tmp_path, bos_token="<b>").render(USER).startswith("<b><|im_start|>")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json {{ pad_token }}"}')
    assert load_chat_template(tmp_path).render(USER) == "json "
    (tmp_path / "chat_template.jinja").write_text("jinja {{ eos_token }}")
    assert load_chat_template(tmp_path).render(USER) == "jinja </s>"


def test_template_lists(tmp_path):
    file = tmp_path / "tokenizer_config.json"
    entries = [{"name": "default", "template": "d{{ eos_token }}"}, {"name": "tool_use", "template": "t"}]
    file.write_text(json.dumps({"chat_template": entries, "eos_token": {"content": "<e>"}}))
    assert load_chat_template(tmp_path).render(USER) == "d<e>"
    file.write_text(json.dumps({"chat_template": [{"name": "x"}]}))
    with pytest.raises(TextError, match="neither a string nor a list of"):
        load_chat_template(tmp_path)


def test_gguf_without_template_and_with_named_ones(smollm):
    with pytest.raises(TextError, match=r"GGUF file has no chat template\. pass a raw prompt"):
        chat_template_from_gguf({}, smollm)
    named = {
        "tokenizer.chat_template": "d {{ bos_token }}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "t",
    }
    template = chat_template_from_gguf(named, smollm)
    assert (template.render(USER), template.render(USER, tools=[{}])) == ("d <|im_start|>", "t")


def test_threads_share_a_template():
    template, results = ChatTemplate(CHATML), []

    def work(n: int) -> None:
        text = template.render([{"role": "user", "content": str(n)}] * 50)
        results.append(text.count(f"\n{n}<") == 50)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [True] * 8


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", r"messages is a str, not a list\. pass \[\{"),
        ([], "the chat has 0 messages"),
        (USER * 16385, "the chat has 16385 messages"),
        (["Hi"], r"messages\[0\] is a str, not a table"),
        ([{"content": "x"}], r"messages\[0\]\.role = None is not a role\. use system"),
        ([{"role": "a\nb", "content": "x"}], "is not a role"),
        ([{"role": "x" * 65, "content": "x"}], "is not a role"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing\. a message of role user"),
        ([{"role": "user", "content": 5}], r"content is a int\. use a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] has type 'image_url'"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] has type 'str'"),
        ([{"role": "user", "content": "", "tool_calls": "x"}], "tool_calls is a str, not a list"),
        ([{"role": "user", "content": "", "tool_calls": [1]}], r"tool_calls\[0\] is a int"),
        ([{"role": "user", "content": "", "tool_calls": [{}]}], r"tool_calls\[0\] has no function name"),
        (
            [{"role": "user", "tool_calls": [{"name": "f", "arguments": "{"}]}],
            r"tool_calls\[0\]: the arguments are not JSON",
        ),
        (
            [{"role": "user", "tool_calls": [{"name": "f", "arguments": "[1]"}]}],
            "the arguments are a list, not a table",
        ),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(RequestError, match=message):
        render(CHATML, messages)


def test_malformed_tools_and_huge_chats(monkeypatch):
    for tools, message in [
        ({"a": 1}, "tools is a dict, not a list"),
        ([5], r"tools\[0\] is a int, not a table"),
        ([{}] * 1025, "1025 tools were given, the limit is 1024"),
    ]:
        with pytest.raises(RequestError, match=message):
            render(CHATML, tools=tools)
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(RequestError, match="the tools are nested over 64 levels deep"):
        render(CHATML, tools=[deep])
    monkeypatch.setattr("minicpm4.text.messages.MAX_CHAT_CHARS", 100)
    with pytest.raises(RequestError, match=r"the messages hold over 100 characters\. shorten"):
        render(CHATML, [{"role": "user", "content": "x" * 101}])


def test_a_token_that_the_model_lacks_is_not_defined():
    source = "{{ bos_token is defined }},{{ eos_token is defined }},{{ bos_token }}{{ bos_token ~ 'a' }}"
    source += "{{ bos_token + 'b' + bos_token }}{% if bos_token %}c{% endif %}"
    for template in (ChatTemplate(source, None, "</s>"), ChatTemplate(source, tokens={"eos_token": "</s>"})):
        assert template.render(USER) == "False,True,ab"
        assert "".join(template.trace_checked(check_messages(USER), None)) == "False,True,ab"


def test_a_whole_call_that_a_template_writes_out_is_as_the_caller_gave_it():
    call = {"function": {"name": "f", "arguments": {"a": "b"}}}
    text = {"function": {"name": "f", "arguments": '{"a": "b"}'}}
    for source in ("{{ messages[1] }}", "{{ messages[1].tool_calls }}", "{{ messages[1]['tool_calls'][0] }}"):
        for given in (call, text):
            told = {"role": "assistant", "content": "", "tool_calls": [given]}
            expected = {"messages[1] ": told, ".tool_calls ": [given]}
            expected = next((v for k, v in expected.items() if k in source), given)
            assert render(source, [*USER, told]) == str(expected)


def test_what_is_set_in_a_generation_block_holds_inside():
    source = "{% set x = 0 %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}"
    source += "{% for m in messages %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}"
    assert render(source, USER) == "101"


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
