"""Jinja for templates that came with a checkpoint: no access to Python, bounded work.

Immutable sandbox, as in transformers, with the same helpers (``tojson`` that does not escape HTML,
``raise_exception``, ``strftime_now``, ``{% generation %}``). On top of it every loop and call looks
at a deadline, and operators refuse to build huge values. This stops accidents and simple abuse; it
is no substitute for running only checkpoints that one trusts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.filters import sync_do_join
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from minicpm4.errors import TextError

__all__ = ["MAX_OUTPUT_CHARS", "TemplateSandbox"]

MAX_OUTPUT_CHARS = 64 << 20
_TICK, _CONCAT = "_minicpm4_tick", "_minicpm4_concat"


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant writes; rendering ignores the mark."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run. ``render`` is not for several threads at once:
    make one sandbox a render, or hold a lock."""

    concat = staticmethod(lambda parts: _bounded_join(list(parts)))  # of set blocks and macros
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControls])
        self.filters["tojson"] = _tojson
        self.filters[_TICK] = self._ticked
        self.filters[_CONCAT] = lambda items: _bounded_join([str(item) for item in items])
        self.filters["join"] = _join
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
        return "".join(parts)

    def check_deadline(self) -> None:
        """Raise TextError when the render has used up its time."""
        if time.monotonic() > self._deadline:
            raise TextError(
                f"the chat template ran for over {self._seconds:g} s", "it may loop: use another template"
            )

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounds(self).visit(source), *args, **kwargs)

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
        for value in (*args, *kwargs.values()):
            # Widths such as "x".center(10 ** 9) are the calls that make huge values.
            if isinstance(value, int) and abs(value) > MAX_OUTPUT_CHARS:
                raise TextError(f"the chat template calls a function with {value}, which is too large")
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
            raise TextError("the chat template formats with %", "this is not supported: use ~ to join text")
        return super().call_binop(context, operator, left, right)


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1024


def _check_product(left: Any, right: Any) -> None:
    for sized, times in ((left, right), (right, left)):
        if isinstance(sized, str | list | tuple) and isinstance(times, int):
            _check_length(len(sized) * times)


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
