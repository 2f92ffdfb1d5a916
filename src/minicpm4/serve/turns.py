"""Conversations of APIs that speak in blocks or items, put together as the turns that templates know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicpm4.serve.errors import invalid
from minicpm4.text.call_messages import result_message

APART = "\n\n"  # between texts that become one


class Turns:
    """Takes what was said, in order. Texts that follow one another in one role are one message, since many
    templates refuse two. What a system says before anybody else is the system's message; later it is part of
    the user's turn, where it was said: templates know one system, at the beginning."""

    def __init__(self) -> None:
        self._system: list[str] = []
        self._made: list[dict[str, Any]] = []
        self._called: dict[str, str] = {}

    def system(self, text: str) -> None:
        if self._made:
            self.user(text)
        elif text:
            self._system.append(text)

    def user(self, text: str) -> None:
        last = self._made[-1] if self._made else None
        if last is None or last["role"] != "user":
            self._made.append({"role": "user", "content": text})
        elif text:
            last["content"] = APART.join(filter(None, (last["content"], text)))

    def thought(self, text: str) -> None:
        if text:
            turn = self._answer()
            turn["reasoning_content"] = APART.join(filter(None, (turn.get("reasoning_content"), text)))

    def answer(self, text: str) -> None:
        turn = self._answer()
        turn["content"] = APART.join(filter(None, (turn["content"], text)))

    def call(self, number: str, name: str, arguments: str | Mapping[str, Any]) -> None:
        """``number`` is what its result names."""
        self._called[number] = name
        function = {"name": name, "arguments": arguments}
        self._answer().setdefault("tool_calls", []).append(
            {"id": number, "type": "function", "function": function}
        )

    def result(self, number: str, text: str, where: str) -> None:
        """Raises ApiError, which names the field ``where``, unless there was such a call."""
        if number not in self._called:
            raise invalid(where, f"{where} = {number[:80]!r} names no call before it")
        self._made.append(result_message(number, self._called[number], text))

    @property
    def ends_in_answer(self) -> bool:
        """Whether nobody has said anything since the model did."""
        return bool(self._made) and self._made[-1]["role"] == "assistant"

    def messages(self) -> list[dict[str, Any]]:
        first = [{"role": "system", "content": APART.join(self._system)}] if self._system else []
        return [*first, *self._made]

    def _answer(self) -> dict[str, Any]:
        if not self.ends_in_answer:
            self._made.append({"role": "assistant", "content": ""})
        return self._made[-1]


def field(table: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``table[name]``, which must be there and of that kind. Raises ApiError with its path."""
    value = table.get(name)
    if isinstance(value, kind) and (value or not isinstance(value, str) or name not in _NAMES):
        return value
    path = f"{where}.{name}"
    if value is None:
        raise invalid(path, f"{path} is missing", "missing_field")
    raise invalid(path, f"{path} = {value!r:.80} is not what belongs there", "invalid_value")


_NAMES = ("name", "id", "call_id", "tool_use_id")  # never empty


def schema_of(table: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """A JSON schema, or none. Raises ApiError."""
    value = table.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise invalid(f"{where}.{name}", f"{where}.{name} is no schema, which is an object", "invalid_value")
    return value or {"type": "object", "properties": {}}


def function_of(name: str, description: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates know it."""
    told = {"description": description} if isinstance(description, str) and description else {}
    return {"type": "function", "function": {"name": name, **told, "parameters": parameters}}
