"""Jinja for templates that came with a checkpoint: no access to Python, bounded work.

Immutable sandbox, as in transformers, with the same helpers (``tojson`` that does not escape HTML,
``raise_exception``, ``strftime_now``, ``{% generation %}``). On top of it everything that a template can do
is charged to a budget of time and memory before it is done (text/meter.py), and nothing is computed while it
is compiled. It is no substitute for running only checkpoints that one trusts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.filters import do_format, do_indent, make_attrgetter, sync_do_join
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from minicpm4.errors import TextError
from minicpm4.text.meter import (
    FREE_FILTERS,
    ITEM,
    LAZY_FILTERS,
    MAX_BITS,
    MAX_CHARS,
    Meter,
    filter_cost,
    is_scalar,
    method_cost,
    percent_cost,
)
from minicpm4.text.rewriting import CONCAT, COPY, KEY, LOOK, TICK, WRITTEN, Bounds, Signed
from minicpm4.text.written import Written, joined

__all__ = ["MAX_OUTPUT_CHARS", "AbsentToken", "TemplateSandbox", "TracingSandbox"]

MAX_OUTPUT_CHARS = MAX_CHARS
_COMPARING = {"==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan",
              "<=", "le", "in"}  # fmt: skip
_COPIES = frozenset(("copy", "items", "keys", "values"))


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant writes; rendering ignores the mark, but what is set
    inside holds inside, as in transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=lineno)]


class AbsentToken(jinja2.Undefined):
    """A special token that a model does not have: not defined, and nothing where a template adds it."""

    def _beside(self, other: Any) -> Any:
        return other

    __add__ = __radd__ = _beside


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run. ``render`` is not for several threads at once:
    make one sandbox a render, or hold a lock."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    _bounds: type[Bounds] = Bounds
    _merged: Callable[[list[str]], str] = staticmethod("".join)

    def __init__(self, seconds: float = 10.0) -> None:
        # Not optimized: constants would be computed while a template is compiled, without any bound.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControls], optimized=False
        )
        self.meter = Meter(seconds)
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.filters |= {"tojson": _tojson, "join": _join, "sum": _sum, "format": self._format}
        self.filters["indent"] = _indent
        self.filters = {name: self._charged(name, function) for name, function in self.filters.items()}
        self.tests = {
            name: self._looking(cast("Callable[..., Any]", function)) if name in _COMPARING else function
            for name, function in self.tests.items()
        }
        self.filters |= {TICK: self._ticked, CONCAT: self._tilde, LOOK: self._look, COPY: self._copied,
                         KEY: self.meter.looked_for}  # fmt: skip
        self.finalize = _finalize

    def render(self, template: jinja2.Template, values: dict[str, Any]) -> str:
        """The rendered text. Raises TextError over 64 Mi characters, or past limits of time and memory."""
        self.meter.start()
        parts, size = [], 0
        for part in template.generate(values):
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                raise TextError(f"the chat template's output is over {MAX_OUTPUT_CHARS} characters")
            self.meter.tick()
            self.meter.spend(part.__sizeof__())
            parts.append(part)
        return self.concat(parts)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(self._bounds(self).visit(source), *args, **kwargs)

    # What _Bounds sends here.

    def _ticked(self, items: Iterable[Any]) -> Iterator[Any] | Iterable[Any]:
        return items if isinstance(items, jinja2.Undefined) else self.meter.each(items)

    def _tilde(self, items: list[Any]) -> str:
        return self.concat([str(self._look(item)) for item in items])

    def concat(self, parts: Iterable[str]) -> str:
        """One text of several: of what is printed, of set blocks and macros. Raises TextError."""
        parts = list(parts)
        size = sum(map(len, parts))
        _check_length(size)
        self.meter.spend(size)
        return self._merged(parts)

    def _look(self, value: Any) -> Any:
        """``value``, which is printed or compared."""
        if not is_scalar(value):
            self.meter.spend(self.meter.size(value))
        return value

    def _copied(self, value: Any) -> Any:
        """``value``, of which the items are copied."""
        if hasattr(value, "__len__") and not isinstance(value, jinja2.Undefined):
            self.meter.spend(ITEM * (1 + len(value)) if not isinstance(value, str) else value.__sizeof__())
        return value

    # Jinja's hooks.

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is charged for before it runs, and what it makes while it is asked for, then."""
        first = int(hasattr(function, "jinja_pass_arg"))

        @wraps(function)  # with the mark of those that take the environment
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            before, value, rest = args[:first], args[first], args[first + 1 :]
            if name not in FREE_FILTERS:
                value = self.meter.whole(value)
                if not isinstance(value, jinja2.Undefined):
                    self.meter.spend(filter_cost(name, value, rest, kwargs, self.meter))
            else:
                value = (
                    self.meter.each(value)
                    if name in LAZY_FILTERS and not isinstance(value, jinja2.Undefined)
                    else value
                )
                for argument in (*rest, *kwargs.values()):
                    self._look(argument)
            made = function(*before, value, *rest, **kwargs)
            return self.meter.each(made) if isinstance(made, Iterator) else made

        return charged

    def _looking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def looking(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                self._look(value)
            return function(*args, **kwargs)

        return looking

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.meter.looked_for(argument))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.tick()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            args = tuple(map(self.meter.whole, args)) if name == "join" else args
            self.meter.spend(method_cost(owner, name, args, kwargs))
        elif isinstance(owner, Mapping | list | tuple):
            self.meter.spend(ITEM * len(owner) if name in _COPIES else 0)
            for value in args[:1]:
                self.meter.looked_for(value)
        elif not isinstance(obj, Macro):
            for value in (*args, *kwargs.values()):
                self._look(value)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__
        formatter = _Formatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            named = args[0] if value.__name__ == "format_map" and args else kwargs
            return type(text)(formatter.vformat(text, args, named))

        return formatted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.tick()
        if operator == "**" and not (_small(left) and _small(right)):
            raise TextError("the chat template raises a number to a huge power")
        for value in (left, right):
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise TextError(f"the chat template computes with numbers of over {MAX_BITS} bits")
        if operator == "*":
            self._check_product(left, right)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
            self._copied(left)
            self._copied(right)
        if operator == "%" and isinstance(left, str):
            self._check_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        pattern = str(self._look(value))
        self._check_percent(pattern, kwargs or args)
        return do_format(pattern, *args, **kwargs)

    def _check_product(self, left: Any, right: Any) -> None:
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, str | list | tuple) and isinstance(times, int):
                _check_length(len(sized) * times)
                self.meter.spend((1 if isinstance(sized, str) else 8) * len(sized) * max(0, times))

    def _check_percent(self, pattern: str, values: Any) -> None:
        cost = percent_cost(pattern, values, self.meter.size)
        _check_length(cost)
        self.meter.spend(cost)


class _Formatter(SandboxedFormatter):
    """str.format that is charged for field by field."""

    _env: TemplateSandbox

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(self._env._look(value), conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        widths = [int(digits) for digits in re.findall("[0-9]{1,20}", format_spec)]
        _check_length(sum(widths))
        self._env.meter.tick()
        self._env.meter.spend(sum(widths) + self._env.meter.size(value))
        return super().format_field(value, format_spec)


@jinja2.pass_context  # or constants would be printed while a template is compiled
def _finalize(context: Context, value: Any) -> Any:
    assert isinstance(context.environment, TemplateSandbox)
    return context.environment._look(value)


class TracingSandbox(TemplateSandbox):
    """The same, slower: what it renders are ``Written`` strings."""

    _bounds = Signed
    _merged = staticmethod(joined)

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__(seconds)
        self.filters[WRITTEN] = _written
        self.filters["join"] = self._charged("join", _written_join)


@jinja2.pass_context  # or it is done once, when the template is compiled, and its result written down
def _written(context: Context, text: str) -> str:
    return Written.whole(text)


@jinja2.pass_eval_context
def _written_join(
    context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None
) -> str:
    return _join(context, value, d if isinstance(d, Written) else Written(str(d)), attribute)


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1024


def _check_length(length: int) -> None:
    if length > MAX_OUTPUT_CHARS:
        raise TextError(f"the chat template builds a value of {length} items, which is too large")


@jinja2.pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = list(value)
    _check_length(sum(len(d) + (len(item) if isinstance(item, str) else 0) for item in items))
    return sync_do_join(context, items, d, attribute)


def _indent(s: Any, *args: Any, **kwargs: Any) -> str:
    """Jinja's, of texts alone: of a list it would write a line end into the caller's own."""
    if not isinstance(s, str):
        raise TypeError(f"indent of a {type(s).__name__}, which is no text")
    return do_indent(s, *args, **kwargs)


@jinja2.pass_context
def _sum(
    context: Context, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    """Jinja's, by the operator that the meter sees."""
    environment = context.environment
    assert isinstance(environment, TemplateSandbox)
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    for item in iterable:
        start = environment.call_binop(context, "+", start, item)
    return start


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
