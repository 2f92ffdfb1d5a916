"""What templates of strangers may take: everything that Jinja can do stays within the meter's budget."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest
from jinja2 import nodes

from minicpm4.errors import TextError
from minicpm4.text import ChatTemplate, meter, sandbox
from minicpm4.text.sandbox import TemplateSandbox

USER = [{"role": "user", "content": "Hi"}]
SMALL = 1 << 20  # bytes of the budget in these tests
# Values that are small to write and large to print, count, pad, cut or compare.
DAG = "{% set n = namespace(v=['x']) %}{% for i in range(60) %}{% set n.v = [n.v, n.v] %}{% endfor %}"
PAIRS = DAG.replace("[n.v, n.v]", "{'a': n.v, 'b': n.v}").replace("['x']", "{}")
NAMES = DAG.replace("[n.v, n.v]", "namespace(a=n.v, b=n.v)")
LONG = "{% set n = namespace(v='a b\t\n<b>%' * 20000) %}"
MANY = "{% set n = namespace(v=[1, 2, 3] * 20000) %}"
TUPLES = DAG.replace("[n.v, n.v]", "(n.v, n.v)").replace("['x']", "(1,)")
ROWS = "{% set n = namespace(v=[{'a': 'x' * 1000}] * 2000) %}"
VALUES = {
    "dag": DAG,
    "pairs": PAIRS,
    "names": NAMES,
    "long": LONG,
    "many": MANY,
    "tuples": TUPLES,
    "rows": ROWS,
}
FILTERED = ("dag", "long", "many", "rows")
ARGUMENTS = ["", "(9999999)", "('a', 'x' * 100000)", "(n.v)", "(indent=99999)"]


def outcome(source: str) -> str:
    """What a template gives, or why it is refused; its peak of memory stays near the budget."""
    tracemalloc.start()
    try:
        found = ChatTemplate(source).render(USER)
    except TextError as error:
        found = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 * SMALL, (source, peak)
    return found


@pytest.fixture(autouse=True)
def small_budget(monkeypatch):
    for module in (meter, sandbox):
        for name in ("MAX_CHARS", "MAX_OUTPUT_CHARS", "BUDGET"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, SMALL)


def names_of(kind: str) -> list[str]:
    return sorted(name for name in getattr(TemplateSandbox(), kind) if not name.startswith("_"))


@pytest.mark.parametrize("value", FILTERED)
@pytest.mark.parametrize("name", names_of("filters"))
def test_every_filter(name, value):
    for arguments in ARGUMENTS:
        outcome(VALUES[value] + "{{ (n.v|" + name + arguments + ")|list|length }}")


@pytest.mark.parametrize("name", [name for name in dir(str) if not name.startswith("_")])
def test_every_method_of_text(name):
    for arguments in (
        "",
        "9999999",
        "500000, 'a'",
        "'a', 'x' * 100000",
        "n.v",
        "n.v, n.v",
        "'', n.v",
        "['a'] * 90000",
    ):
        outcome(LONG + "{{ n.v." + name + "(" + arguments + ")|string|length }}")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "use",
    ["n.v", "n.v ~ 'a'", "n.v == n.v", "n.v in [n.v]", "'a' in n.v", "{n.v: 1}", "[n.v][n.v]", "n.v < n.v",
     "n.v[1:]", "[n.v] is in [[n.v]]", "'%s' % n.v", "'%(a)s' * 9999 % n.v", "('{0}' * 9999).format(n.v)",
     "'{0!r:>9999999}'.format(n.v)", "'{:{w}}'.format(1, w=9999999)", "[n.v, n.v]|map('string')|list|length",
     "[n.v]|select('equalto', n.v)|list|length", "n.v + n.v", "n.v * 9999999", "[1].index(n.v)",
     "{}.get(n.v)", "dict(a=n.v)", "cycler(n.v, n.v).next()", "joiner(n.v)()", "n.v|tojson|tojson"],
)  # fmt: skip
def test_every_use(use, value):  # fmt: skip
    outcome(VALUES[value] + "{{ " + use + " }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% set n = namespace(x=1) %}{% set n.self = n %}{{ n }}",
            "nests values over 200 deep, or in themselves",
        ),
        (
            "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "4096 bits",
        ),
        ("{{ 1e999 }}", "a number is too large"),
        ("{{ cycler() }}", "fails on these messages: at least one item"),
        ("{{ 'x'|center(99999999) }}", "pads to 99999999 characters"),
        ("{{ lipsum(n=9999) }}", "'lipsum' is undefined"),
        ("{{ [[1]] * 30000|sum(start=[]) }}", "fails on these messages|too large"),
        (
            "{% for i in range(99999) %}{% set x = [i] * 9 %}{% endfor %}",
            "use another template, or a shorter chat",
        ),
        ("{{ 'x'.translate({120: 'y'}) }}", r"calls translate\(\) of a text"),
    ],
)
def test_limits_have_names(source, message):
    with pytest.raises(TextError, match=message):
        ChatTemplate(source).render(USER)


def test_nothing_is_computed_while_a_template_is_compiled():
    """A template that is never rendered costs its parsing, whatever its constants say."""
    tracemalloc.start()
    ChatTemplate("{{ 'x' * 60000000 }}{{ 'x'|center(60000000) }}{{ range(99999)|list|length }}")
    assert tracemalloc.get_traced_memory()[1] < 12 * SMALL
    tracemalloc.stop()


def test_all_expressions_are_known():
    """A new kind of expression in Jinja is one that the meter does not know."""
    known = {
        "Add", "And", "BinExpr", "Call", "Compare", "Concat", "CondExpr", "Const", "ContextReference",
        "DerivedContextReference", "Dict", "Div", "EnvironmentAttribute", "ExtensionAttribute", "Filter",
        "FloorDiv", "Getattr", "Getitem", "ImportedName", "InternalName", "List", "Literal", "MarkSafe",
        "MarkSafeIfAutoescape", "Mod", "Mul", "NSRef", "Name", "Neg", "Not", "Or", "Pos", "Pow", "Slice",
        "Sub", "TemplateData", "Test", "Tuple", "UnaryExpr", "_FilterTestCommon",
    }  # fmt: skip
    found, todo = set(), [nodes.Expr]
    while todo:
        for one in todo.pop().__subclasses__():
            found.add(one.__name__)
            todo.append(one)
    assert found <= known


@pytest.mark.parametrize("name", ["messages", "tools", "documents"])
def test_no_filter_changes_what_the_caller_gave(name: str) -> None:
    """Jinja's ``indent`` adds a line end to its value, in place where that is a list."""
    given: dict[str, list[Any]] = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}
    given["documents"] = [{"text": "d"}]
    before = copy.deepcopy(given)
    template = ChatTemplate(f"{{{{ {name}|indent(2) }}}}{{{{ messages[0].content }}}}")
    with pytest.raises(TextError, match="indent of a list, which is no text"):
        template.render(given["messages"], tools=given["tools"], documents=given["documents"])
    assert given == before
    assert ChatTemplate("{{ 'a\nb'|indent(2) }}").render(given["messages"]) == "a\n  b"
