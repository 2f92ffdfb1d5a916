"""Jinja for templates that came with a checkpoint: no access to Python, bounded work.

Immutable sandbox, as in transformers, with the same helpers (``tojson`` that does not escape HTML,
``raise_exception``, ``strftime_now``, ``{% generation %}``). On top of it every loop and call looks
at a deadline, and operators refuse to build huge values. This stops accidents and simple abuse; it
is no substitute for running only checkpoints that one trusts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.filters import do_format, sync_do_join
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from minicpm4.errors import TextError
from minicpm4.text.written import Written, joined

__all__ = ["MAX_OUTPUT_CHARS", "AbsentToken", "TemplateSandbox", "TracingSandbox"]

MAX_OUTPUT_CHARS = 64 << 20
# What takes a width: no other calls make text much longer than what they are given.
_WIDTH_METHODS = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))
_WIDTH_FILTERS = ("center", "indent")
_PERCENT = re.compile(r"%(?:\([^)]*\))?([-+ #0]*[0-9*]*(?:\.[0-9*]*)?)")
_TICK, _CONCAT, _WRITTEN = "_minicpm4_tick", "_minicpm4_concat", "_minicpm4_written"


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant writes; rendering ignores the mark, but what is set
    inside holds inside, as in transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=lineno)]


class _Bounds(NodeTransformer):
    """Sends what loops run over, and what ~ joins, through checks."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, _TICK)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

    def _filtered(self, node: Any, name: str) -> nodes.Filter:
        call = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        call.set_environment(self._environment)
        return call


class _Signed(_Bounds):
    """Every literal of a template is a string that knows that it is the template's."""

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        return self._filtered(node, _WRITTEN) if isinstance(node.value, str) else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._filtered(nodes.Const(node.data, lineno=node.lineno), _WRITTEN)


class AbsentToken(jinja2.Undefined):
    """A special token that a model does not have: not defined, and nothing where a template adds it."""

    def _beside(self, other: Any) -> Any:
        return other

    __add__ = __radd__ = _beside


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run. ``render`` is not for several threads at once:
    make one sandbox a render, or hold a lock."""

    concat = staticmethod(lambda parts: _bounded_join(list(parts)))  # of set blocks and macros
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    _bounds: type[_Bounds] = _Bounds

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControls])
        self.filters["tojson"] = _tojson
        self.filters[_TICK] = self._ticked
        self.filters[_CONCAT] = lambda items: _bounded_join([str(item) for item in items])
        self.filters["join"] = _join
        self.filters["format"] = _format
        for name in _WIDTH_FILTERS:
            self.filters[name] = _with_checked_widths(self.filters[name])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self._seconds = seconds
        self._deadline = 0.0

    def render(self, template: jinja2.Template, values: dict[str, Any]) -> str:
        """The rendered text. Raises TextError over 64 Mi characters or past the time limit."""
        self._deadline = time.monotonic() + self._seconds
        parts, size = [], 0
        for part in template.generate(values):
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                raise TextError(f"the chat template's output is over {MAX_OUTPUT_CHARS} characters")
            self.check_deadline()
            parts.append(part)
        return self.concat(parts)

    def check_deadline(self) -> None:
        """Raise TextError when the render has used up its time."""
        if time.monotonic() > self._deadline:
            raise TextError(
                f"the chat template ran for over {self._seconds:g} s", "it may loop: use another template"
            )

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(self._bounds(self).visit(source), *args, **kwargs)

    def _ticked(self, items: Iterable[Any]) -> Iterator[Any] | Iterable[Any]:
        if isinstance(items, jinja2.Undefined):
            return items
        return self._tick_each(items)

    def _tick_each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.check_deadline()
            yield item

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.check_deadline()
        name = getattr(obj, "__name__", None)
        if name in _WIDTH_METHODS and isinstance(getattr(obj, "__self__", None), str):
            _check_widths((*args, *kwargs.values()))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check_deadline()
        if operator == "**" and not (_small(left) and _small(right)):
            raise TextError("the chat template raises a number to a huge power")
        if operator == "*":
            _check_product(left, right)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
        return super().call_binop(context, operator, left, right)


class TracingSandbox(TemplateSandbox):
    """The same, slower: what it renders are ``Written`` strings."""

    concat = staticmethod(lambda parts: _bounded_written(list(parts)))
    _bounds = _Signed

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__(seconds)
        self.filters[_WRITTEN] = _written
        self.filters[_CONCAT] = lambda items: _bounded_written([str(item) for item in items])
        self.filters["join"] = _written_join


@jinja2.pass_context  # or it is done once, when the template is compiled, and its result written down
def _written(context: Context, text: str) -> str:
    return Written.whole(text)


def _bounded_written(parts: list[str]) -> str:
    _check_length(sum(map(len, parts)))
    return joined(parts)


@jinja2.pass_eval_context
def _written_join(
    context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None
) -> str:
    return _join(context, value, d if isinstance(d, Written) else Written(str(d)), attribute)


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1024


def _check_product(left: Any, right: Any) -> None:
    for sized, times in ((left, right), (right, left)):
        if isinstance(sized, str | list | tuple) and isinstance(times, int):
            _check_length(len(sized) * times)


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_OUTPUT_CHARS:
            raise TextError(f"the chat template pads to {value} characters, which is too many")


def _with_checked_widths(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with the mark of those that take the environment
    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()))
        return function(value, *args, **kwargs)

    return checked


def _check_percent(pattern: str) -> None:
    """Raise TextError where ``pattern`` asks % to pad to a huge width."""
    widths = _PERCENT.findall(pattern)
    if any("*" in part for part in widths):
        raise TextError("the chat template formats with a width of *", "this is not supported")
    digits = re.findall("[0-9]{1,20}", " ".join(widths))
    _check_length(len(pattern) + sum(map(int, digits)))


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(value))
    return do_format(value, *args, **kwargs)


def _check_length(length: int) -> None:
    if length > MAX_OUTPUT_CHARS:
        raise TextError(f"the chat template builds a value of {length} items, which is too large")


def _bounded_join(parts: list[str]) -> str:
    _check_length(sum(map(len, parts)))
    return "".join(parts)


@jinja2.pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = list(value)
    _check_length(sum(len(d) + (len(item) if isinstance(item, str) else 0) for item in items))
    return sync_do_join(context, items, d, attribute)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
