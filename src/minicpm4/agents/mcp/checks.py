"""Do arguments fit a tool's schema? In bounded steps: schemas are a stranger's, and may refer in circles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, UnknownType, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

__all__ = ["misfit"]

MAX_STEPS = 20_000
MAX_WORK = 1_000_000  # values and names that these steps go through
# What keywords of the wrong type raise, and numbers that are too large or 0.
_WRONG = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)
# Regular expressions of strangers may take for ever: the engine's grammar follows them, this does not.
_UNCHECKED = ("pattern", "patternProperties", "format", "unevaluatedProperties", "unevaluatedItems")


class _TooMuch(Exception):
    pass


def misfit(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Why ``arguments`` do not fit ``schema``; "" where they do, as far as it can be told. ``pattern``,
    ``format`` and what depends on them are left to the server, as is a schema that is none."""
    steps = work = 0

    def counted(keyword: Any) -> Any:
        def check(validator: Any, value: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            nonlocal steps, work
            steps += 1
            work += sum(len(one) for one in (value, instance) if isinstance(one, list | dict))
            if steps > MAX_STEPS or work > MAX_WORK:
                raise _TooMuch
            yield from keyword(validator, value, instance, whole) or ()

        return check

    known = {**Draft202012Validator.VALIDATORS, "uniqueItems": _unique, "additionalProperties": _additional}
    keywords = {key: counted(one) for key, one in known.items() if key not in _UNCHECKED}
    left_out = dict.fromkeys(_UNCHECKED, lambda *_: ())
    checker = extend(Draft202012Validator, {**keywords, **left_out})
    try:
        error = next(checker(schema, registry=Registry()).iter_errors(arguments), None)
    except (_TooMuch, RecursionError, Unresolvable, SchemaError, UnknownType, *_WRONG):
        return ""
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"{place}: {error.message:.300}" if place else f"{error.message:.300}"


def _unique(validator: Any, wanted: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
    """As jsonschema's own, which compares each with each, in time linear in what there is."""
    if wanted and isinstance(instance, list) and len(set(map(_key, instance))) < len(instance):
        yield ValidationError(f"{instance!r:.200} has non-unique elements")


def _key(value: Any) -> Any:
    """The same for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, Mapping):
        return "table", frozenset((name, _key(one)) for name, one in value.items())
    return ("list", *map(_key, value)) if isinstance(value, list) else (isinstance(value, bool), value)


def _additional(validator: Any, wanted: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
    """As jsonschema's own, unless patterns decide which properties are meant."""
    if "patternProperties" not in whole:
        own = Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from own(validator, wanted, instance, whole) or ()
