"""Servers over standard streams that tests make: plain JSON-RPC, in the manner that the first argument names.

    python made_server.py MANNER [FILE]

FILE gets a line for each start and each call. No SDK: what is sent is what is written here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD = {
    "name": "add",
    "description": "Add two whole numbers.",
    "inputSchema": {**SCHEMA, "required": ["a", "b"]},
}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], **more}


class Made:
    """An old server: it greets, lists ``tools`` and adds. Manners override what they do otherwise."""

    tools: list[dict[str, Any]] = [ADD]  # noqa: RUF012

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self.greeted = False
        self.listed = 0
        self.note("start")

    def note(self, what: str) -> None:
        if self.log is not None:
            with self.log.open("a") as out:
                out.write(what + "\n")

    @property
    def noted(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log is not None and self.log.exists() else []

    def unknown(self, number: Any, method: str) -> None:
        send({"id": number, "error": {"code": -32601, "message": f"Method not found: {method}"}})

    def before_greeting(self, number: Any, method: str) -> None:
        self.unknown(number, method)

    def answer(self, message: dict[str, Any]) -> None:
        number, method, params = message.get("id"), message.get("method"), message.get("params") or {}
        if method == "initialize":
            self.greeted = True
            send({"id": number, "result": self.greeting(params)})
        elif number is None or method is None:
            self.hear(message)
        elif not self.greeted:
            self.before_greeting(number, method)
        elif method == "tools/list":
            self.listed += 1
            send({"id": number, "result": self.list(params)})
        elif method == "tools/call":
            self.note(f"call {params['name']} {json.dumps(params.get('arguments'), sort_keys=True)}")
            self.call(number, params["name"], params.get("arguments") or {})
        else:
            self.unknown(number, method)

    def greeting(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "made", "version": "1"},
        }

    def list(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"tools": self.tools}

    def hear(self, message: dict[str, Any]) -> None:
        """Notifications, and answers to what it asked."""

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        send({"id": number, "result": text(str(given["a"] + given["b"]))})

    def run(self) -> None:
        for line in sys.stdin:
            self.answer(json.loads(line))


class BadParams(Made):
    def before_greeting(self, number: Any, method: str) -> None:
        send({"id": number, "error": {"code": -32602, "message": "Invalid request parameters"}})


class Silent(Made):
    def before_greeting(self, number: Any, method: str) -> None:
        self.note("asked")


class Exits(Made):
    def before_greeting(self, number: Any, method: str) -> None:
        self.note("asked")
        sys.stderr.write("expected initialize\n")
        sys.exit(1)


class Variables(Made):
    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        send({"id": number, "result": text(json.dumps(dict(os.environ)))})


class Dies(Made):
    """It ends at its first call of all, and answers the others."""

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        if sum(line.startswith("call") for line in self.noted) == 1:
            sys.exit(3)
        super().call(number, name, given)


class Calculator(Made):
    """As the pages have it, with products alone."""

    tools = [  # noqa: RUF012
        {
            "name": "calculate",
            "description": "Tell what an expression comes to, or what time it is in Paris.",
            "inputSchema": {"type": "object", "properties": {"expression": {"type": "string"}}}
            | {"required": ["expression"]},
        }
    ]

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        left, right = given["expression"].split("*")
        send({"id": number, "result": text(str(int(left) * int(right)))})


class Broken(Made):
    def run(self) -> None:
        sys.stderr.write("no database at /nowhere\n")
        sys.exit(7)


class Pages(Made):
    def list(self, params: dict[str, Any]) -> dict[str, Any]:
        at = int(params.get("cursor") or 0)
        page = {"tools": [{**ADD, "name": f"add{at}"}]}
        return page if at == 4 else {**page, "nextCursor": str(at + 1)}


class Endless(Pages):
    def list(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**super().list(params), "nextCursor": str(int(params.get("cursor") or 0) + 1)}


class Asks(Made):
    """It asks the user for a number before it answers, as old servers do: by a request of its own."""

    asked = 1

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        self.waiting, self.left = number, self.asked
        self.ask()

    def ask(self) -> None:
        fields = {
            "n": {"type": "integer"},
            "way": {"type": "string", "enum": ["up", "down"], "default": "up"},
        }
        schema = {"type": "object", "properties": fields, "required": ["n"]}
        asked = {"message": "Which number?", "requestedSchema": schema, "mode": "form"}
        send({"id": f"q{self.left}", "method": "elicitation/create", "params": asked})

    def hear(self, message: dict[str, Any]) -> None:
        if str(message.get("id", "")).startswith("q"):
            self.left -= 1
            if self.left > 0:
                self.ask()
            else:
                send({"id": self.waiting, "result": text(json.dumps(message["result"]))})


class Hangs(Made):
    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        self.note(str(os.getpid()))
        time.sleep(3600)


NEW = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


class New(Made):
    """Of July 2026: no greeting; a question to the user is an answer, and the call comes again with his."""

    def before_greeting(self, number: Any, method: str) -> None:
        self.greeted = True
        found = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **NEW}
        send({"id": number, "result": found})

    def list(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**super().list(params), **NEW}

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        send({"id": number, "result": text(str(given["a"] + given["b"]), resultType="complete")})


class NewAsks(New):
    def answer(self, message: dict[str, Any]) -> None:
        self.params = message.get("params") or {}
        super().answer(message)

    def enough(self, answers: Any) -> bool:
        return bool(answers)

    def call(self, number: Any, name: str, given: dict[str, Any]) -> None:
        answers = self.params.get("inputResponses")
        if self.enough(answers):
            told = {"answers": answers, "state": self.params["requestState"]}
            send({"id": number, "result": text(json.dumps(told), resultType="complete")})
            return
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        asked = {"mode": "form", "message": "Which number?", "requestedSchema": schema}
        wanted = {"one": {"method": "elicitation/create", "params": asked}}
        result = {"resultType": "input_required", "inputRequests": wanted, "requestState": "s1"}
        send({"id": number, "result": result})


class NewOnly(Made):
    """Of a version that we do not know."""

    def before_greeting(self, number: Any, method: str) -> None:
        self.refuse(number)

    def refuse(self, number: Any) -> None:
        data = {"supported": ["2031-01-01"], "requested": "2026-07-28"}
        send({"id": number, "error": {"code": -32022, "message": "no such version", "data": data}})

    def answer(self, message: dict[str, Any]) -> None:
        self.refuse(message.get("id"))


def every(base: type[Made]) -> dict[str, type[Made]]:
    """Manners by their names."""
    found = {base.__name__.lower(): base}
    for one in base.__subclasses__():
        found |= every(one)
    return found


def main(base: type[Made] = Made) -> None:
    manner, *file = sys.argv[1:]
    every(base)[manner](Path(file[0]) if file else None).run()


if __name__ == "__main__":
    main()
