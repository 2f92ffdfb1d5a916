"""What a person is asked, and what they may answer. Whoever shows a question escapes its texts
(``hidden.escaped``): they are a stranger's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minicpm4.config.strict import require
from minicpm4.errors import ConfigError

__all__ = ["Ask", "Consent", "Field", "Form", "May", "declined", "form_of"]

Consent = Literal["once", "session", "always", "no"]
MAX_FIELDS, MAX_CHOICES, MAX_TEXT = 20, 100, 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class May:
    """May this run? ``what``: "start" of a server, or "call" of a tool. ``details``: what it is, line by
    line. ``changed``: what is no longer as it was when it was last allowed. ``warnings``: what to look at.
    """

    what: Literal["start", "call"]
    server: str
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    details: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One thing that a server wants to know. ``kind``: of its JSON value; ``choices``: the only answers;
    ``default``: what it is if nobody says."""

    name: str
    kind: Literal["string", "number", "integer", "boolean", "array"]
    told: str = ""
    choices: tuple[str, ...] = ()
    required: bool = False
    default: Any = None

    def read(self, text: str) -> Any:
        """The value that ``text``, which a person typed, stands for. Raises ConfigError."""
        text = text.strip()
        if self.kind == "boolean":
            known = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
            require(text.lower() in known, f"{self.name}: {text!r:.40} is neither yes nor no")
            return known[text.lower()]
        if self.kind == "array":
            values = [one.strip() for one in text.split(",") if one.strip()]
            for one in values:
                self._check(one)
            return values
        if self.kind == "string":
            self._check(text)
            return text
        try:
            return int(text) if self.kind == "integer" else float(text)
        except ValueError:
            raise ConfigError(f"{self.name}: {text!r:.40} is no {self.kind}") from None

    def takes(self, value: Any) -> bool:
        """Whether a value is of its kind, and among its choices."""
        if self.kind == "array":
            texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
            return texts and (not self.choices or set(value) <= set(self.choices))
        kinds = {"string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,)}
        right = type(value) in kinds[self.kind]
        return right and len(str(value)) <= MAX_TEXT and (not self.choices or value in self.choices)

    def _check(self, one: str) -> None:
        require(
            not self.choices or one in self.choices,
            f"{self.name}: {one!r:.40} is not a choice",
            "choose one of " + ", ".join(self.choices),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A server asks the user something before it goes on with a call. ``url``: a page that it wants opened
    (nothing opens it by itself)."""

    server: str
    tool: str
    message: str
    fields: tuple[Field, ...] = ()
    url: str = ""


Answer = Mapping[str, Any] | None
"""The values of a form, by name; None: the user would rather not."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Whoever answers: ``may`` says whether something runs, ``tell`` fills a form in."""

    may: Callable[[May], Awaitable[Consent]]
    tell: Callable[[Form], Awaitable[Answer]]


async def _no(_: May) -> Consent:
    return "no"


async def _nothing(_: Form) -> Answer:
    return None


declined = Ask(_no, _nothing)
"""Nobody is there to ask: what was not allowed before does not run."""


def form_of(server: str, tool: str, message: str, schema: Mapping[str, Any]) -> Form:
    """The form that a server's schema describes: flat, as the protocol has it. Raises ConfigError."""
    where = f"the form of {server}"
    require(len(message) <= MAX_TEXT, f"{where} has a message of {len(message):,} characters")
    properties = schema.get("properties") or {}
    require(isinstance(properties, Mapping), f"{where} has no table of properties")
    require(len(properties) <= MAX_FIELDS, f"{where} has {len(properties)} fields, the limit is {MAX_FIELDS}")
    required = schema.get("required") or []
    require(isinstance(required, list), f"{where} has no list of what is required")
    fields = tuple(_field(name, one, name in required, where) for name, one in properties.items())
    return Form(server=server, tool=tool, message=message, fields=fields)


def _field(name: str, schema: Any, required: bool, where: str) -> Field:
    require(isinstance(schema, Mapping) and len(name) <= 100, f"{where}: {name!r:.60} is no field")
    kind = schema.get("type", "string")
    require(
        kind in ("string", "number", "integer", "boolean", "array"),
        f"{where}: {name!r:.60} is of no plain type",
    )
    inner = schema.get("items") if kind == "array" else schema
    choices = _choices(inner if isinstance(inner, Mapping) else {})
    require(len(choices) <= MAX_CHOICES, f"{where}: {name!r:.60} has {len(choices)} choices")
    told = " ".join(str(schema[key]) for key in ("title", "description") if isinstance(schema.get(key), str))
    require(len(told) <= MAX_TEXT, f"{where}: {name!r:.60} is described in {len(told):,} characters")
    made = Field(name=name, kind=kind, told=told, choices=choices, required=required)
    default = schema.get("default")
    return replace(made, default=default) if made.takes(default) else made


def _choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(schema.get("enum"), list):
        return tuple(one for one in schema["enum"] if isinstance(one, str))
    several = schema.get("oneOf") or schema.get("anyOf")
    if not isinstance(several, list):
        return ()
    consts = [one.get("const") for one in several if isinstance(one, Mapping)]
    return tuple(one for one in consts if isinstance(one, str))
