"""Chat templates by how they write calls, and calls that each can write."""

from __future__ import annotations

from typing import Any

from minicpm4.text import ChatTemplate
from tests.text.chats import TOKENS, sources, tool

# What MiniCPM5's writes, in fewer words. Its tags are control tokens.
MINICPM5 = r"""
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for one in tools %}{{- '\n' ~ (one | tojson) }}{%- endfor %}
    {{- '\n</tools>\nA call is <function name="f"><param name="p">v</param></function>.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\n' }}
    {%- if m.role == 'assistant' %}
        {{- '<think>\n' ~ (m.reasoning_content or '') ~ '\n</think>\n\n' ~ (m.content or '') }}
        {%- for call in m.tool_calls or [] %}
            {%- if not loop.first or m.content %}{{- '\n' }}{%- endif %}
            {{- '<function name="' ~ call.function.name ~ '">' }}
            {%- for name, value in call.function.arguments.items() %}
                {%- set text = value if value is string else value | tojson %}
                {%- if '<' in text or '&' in text or '\n' in text %}
                    {%- set text = '<![CDATA[' ~ text ~ ']]>' %}
                {%- endif %}
                {{- '<param name="' ~ name ~ '">' ~ text ~ '</param>' }}
            {%- endfor %}
            {{- '</function>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- m.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined %}
        {{- '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
MINICPM5_TOKENS = ("<function", "</function>", "<param", "</param>")
# What templates of Mistral's later tokenizers write, and one for pythonic calls, in fewer words.
NAMED = r"""
{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '[INST]' ~ m.content ~ '[/INST]' }}
    {%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' ~ m.content ~ '[/TOOL_RESULTS]' }}
    {%- elif m.role == 'system' %}{{- '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}
    {%- else %}
        {{- m.content or '' }}
        {%- for call in m.tool_calls or [] %}
            {%- if call.id | length != 9 %}{{- raise_exception('an id has nine characters') }}{%- endif %}
            {{- '[TOOL_CALLS]' ~ call.function.name ~ '[ARGS]' ~ (call.function.arguments | tojson) }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}"""
NUMBERED = NAMED.replace("~ '[ARGS]'", "~ '[CALL_ID]' ~ call.id ~ '[ARGS]'")
PYTHONIC = r"""
{{- bos_token }}
{%- if tools %}{{- '<|im_start|>system\n' ~ (tools | tojson) ~ '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\n' ~ (m.content or '') }}
    {%- if m.tool_calls %}
        {{- '<|python_start|>[' }}
        {%- for call in m.tool_calls %}
            {{- call.function.name ~ '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name ~ '=' ~ (value | tojson) ~ ('' if loop.last else ', ') }}
            {%- endfor %}
            {{- ')' ~ ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']<|python_end|>' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
OWN = {
    "minicpm5": MINICPM5,
    "named": NAMED,
    "numbered": NUMBERED,
    "pythonic": PYTHONIC,
    "bare_pythonic": PYTHONIC.replace("<|python_start|>", "").replace("<|python_end|>", ""),
}
NEWER = ("mistral_v3", "deepseek_v3_1", *sorted(OWN.keys() - {"minicpm5"}))
KINDS = ("hermes", "llama3_1", "minicpm3", "minicpm4", "minicpm5", "qwen2_5", "qwen3", "qwen3_coder", "xlam")
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "</s>")
WRITE = tool(
    "write-file",
    "Write.",
    ["path", "text"],
    path={"type": "string"},
    text={"type": "string"},
    lines={"type": "array", "items": {"type": "integer"}},
    hard={"type": "boolean"},
    note={"anyOf": [{"type": "string"}, {"type": "null"}]},
    more={"type": "object"},
)
NOW = tool("now", "The time.", [])
TOOLS = [WRITE, NOW]
ODD = 'if a < b && c:\n  print("</param> {é}\\n") ]] > end'
GIVEN: dict[str, Any] = {
    "path": "/tmp/a b.txt",
    "text": ODD,
    "lines": [1, -2],
    "hard": True,
    "note": None,
    "more": {"x": [{"y": "1, 2"}], "z": 0.5},
}
PLAIN: dict[str, Any] = {"path": "5", "text": "", "note": "n"}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(source_of(name), tokens=TOKENS)


def source_of(name: str) -> str:
    return OWN.get(name) or sources()[name]


def answer(own: ChatTemplate, calls: list[tuple[str, dict[str, Any]]], content: str = "") -> str:
    """What the model writes to make these calls, as its template tells it later."""
    question = {"role": "user", "content": "Do."}
    made = [
        {"id": f"call0000{i}", "type": "function", "function": {"name": name, "arguments": given}}
        for i, (name, given) in enumerate(calls)
    ]
    said = {"role": "assistant", "content": content, "tool_calls": made}
    text = own.render([question, said], tools=TOOLS, add_generation_prompt=False)
    said_text = (
        text.rpartition("[/INST]")[2]
        .rpartition("assistant")[2]
        .lstrip(">|<_idenhar")
        .rpartition("</think>")[2]
        .strip()
    )
    for end in ENDS:
        said_text = said_text.removesuffix(end)
    return said_text.replace("&lt;/parameter&gt;", "</parameter>")  # Jinja escapes what follows "| safe"
