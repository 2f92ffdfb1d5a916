"""Schemas as people write them, by what they use: bounds, patterns, formats, references, unions, nesting."""

from __future__ import annotations

from typing import Any


def table(required: bool = True, **properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    made = {"type": "object", "properties": properties, "additionalProperties": False}
    return made | ({"required": [*properties]} if required else {})


TEXT = {"type": "string", "maxLength": 10}
COUNT = {"type": "integer", "minimum": 0, "maximum": 500}
FLAGS = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
POINT = table(x=COUNT, y=COUNT)
SHORT = {"type": "string", "maxLength": 3}
LINE = table(sku=TEXT, count=COUNT, price={"type": "number", "minimum": 0, "maximum": 99})
SCHEMAS: dict[str, dict[str, Any]] = {
    "types": table(a=TEXT, b=COUNT, c={"type": "number", "minimum": -5, "maximum": 5}, d={"type": "boolean"}),
    "null": table(a={"type": "null"}, b={"type": ["string", "null"], "maxLength": 4}),
    "optional": table(required=False, a=TEXT, b=COUNT, c={"type": "null"}),
    "enum": table(size={"enum": ["small", "medium", "large"]}, level={"enum": [1, 2.5, None, True]}),
    "enum of tables": {"enum": [{"a": 1}, [1, 2], "x", 'a "quote" and ünïcode']},
    "const": table(kind={"const": "pet"}, version={"const": 2}, nested={"const": {"a": [1, None]}}),
    "pattern": table(plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "pattern inside": {"type": "string", "pattern": "ab+c", "maxLength": 40},
    "date": table(on={"type": "string", "format": "date"}, at={"type": "string", "format": "date-time"}),
    "formats": table(i={"type": "string", "format": "ipv4"}, u={"type": "string", "format": "uuid"}),
    "email": {"type": "string", "format": "email", "maxLength": 60},
    "integer bounds": table(a={"type": "integer", "exclusiveMinimum": -12, "exclusiveMaximum": 7}),
    "number bounds": table(a={"type": "number", "minimum": 0.5, "exclusiveMaximum": 0.75}),
    "multiples": table(a={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000}),
    "lengths": table(a={"type": "string", "minLength": 3, "maxLength": 5}),
    "array": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 6},
    "array of arrays": {
        "type": "array",
        "maxItems": 3,
        "items": {"type": "array", "items": FLAGS, "maxItems": 2},
    },
    "tuple": {"type": "array", "prefixItems": [TEXT, COUNT], "items": False, "minItems": 2},
    "array of tables": {"type": "array", "items": POINT, "minItems": 1, "maxItems": 4},
    "names are strings": {"type": "object", "propertyNames": {"type": "string"}, "maxProperties": 2},
    "not unique": {"type": "array", "items": COUNT, "maxItems": 3, "uniqueItems": False},
    "ref": {"$defs": {"point": POINT}, **table(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"})},
    "old ref": {
        "definitions": {"n": COUNT},
        "type": "array",
        "items": {"$ref": "#/definitions/n"},
        "maxItems": 2,
    },
    "recursion": {
        "$defs": {"tree": table(required=False, left={"$ref": "#/$defs/tree"}, value=COUNT)},
        "$ref": "#/$defs/tree",
    },
    "anyOf": {"anyOf": [table(cat={"const": True}), table(dog=COUNT), {"type": "null"}]},
    "anyOf inside": table(id={"anyOf": [COUNT, {"type": "string", "pattern": "^[a-f]{4}$"}]}),
    "oneOf apart": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, SHORT]},
    "allOf": {"allOf": [{"type": "string"}, {"minLength": 2}, {"maxLength": 6}]},
    "other properties": {
        "type": "object",
        "properties": {"a": COUNT},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": COUNT},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "order": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Order",
        "description": "What was bought",
        **table(
            id={"type": "string", "pattern": "^ORD-[0-9]{4}$"},
            customer=table(name=TEXT, email={"type": "string", "format": "email", "maxLength": 40}),
            lines={"type": "array", "items": LINE, "minItems": 1, "maxItems": 3},
            state={"enum": ["new", "paid", "sent"]},
        ),
    },
}
