"""Do arguments fit a tool's schema? In bounded steps: schemas are a stranger's, and may refer in circles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

__all__ = ["misfit"]

MAX_STEPS = 20_000
# Regular expressions of strangers may take for ever: the engine's grammar follows them, this does not.
_WRONG = (TypeError, ValueError, KeyError, AttributeError)  # what keywords of the wrong type raise
_UNCHECKED = ("pattern", "patternProperties", "format")


class _TooMuch(Exception):
    pass


def misfit(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Why ``arguments`` do not fit ``schema``; "" where they do, as far as it can be told. ``pattern`` and
    ``format`` are left to the server, as is a schema that is none."""
    steps = 0

    def counted(keyword: Any) -> Any:
        def check(validator: Any, value: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            nonlocal steps
            steps += 1
            if steps > MAX_STEPS:
                raise _TooMuch
            yield from keyword(validator, value, instance, whole) or ()

        return check

    keywords = {
        key: counted(one) for key, one in Draft202012Validator.VALIDATORS.items() if key not in _UNCHECKED
    }
    left_out = dict.fromkeys(_UNCHECKED, lambda *_: ())
    checker = extend(Draft202012Validator, {**keywords, **left_out})
    try:
        error = next(checker(schema, registry=Registry()).iter_errors(arguments), None)
    except (_TooMuch, RecursionError, Unresolvable, SchemaError, *_WRONG):
        return ""
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"{place}: {error.message:.300}" if place else f"{error.message:.300}"
