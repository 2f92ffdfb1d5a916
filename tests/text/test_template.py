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
