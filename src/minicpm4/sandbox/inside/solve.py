"""In the sandbox of the stranger's code: runs it, then answers calls. Nothing that it says is trusted."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import values  # type: ignore[import-not-found]  # lies beside it, there


def main() -> None:
    name, hears, speaks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open("solution.py", encoding="utf-8") as file:
        code = file.read()
    space: dict[str, Any] = {"__name__": "solution"}
    out = os.fdopen(speaks, "wb", buffering=0)
    try:
        exec(compile(code, "solution.py", "exec", dont_inherit=True), space)  # noqa: S102 - what the sandbox is for
        function = space[name]
        out.write(values.dump({"ready": True}))
    except BaseException as error:  # whatever strangers raise
        out.write(values.dump({"broken": f"{type(error).__name__}: {error}"[:300]}))
        return
    for line in os.fdopen(hears, "rb"):
        out.write(answer(function, line))


def answer(function: Any, line: bytes) -> bytes:
    """One call's line."""
    call = values.load(line)
    arguments, named = values.unpack(call["args"]), values.unpack(call["kwargs"])
    try:
        result = function(*arguments, **named)
        # Lists that the function changed are changed for the caller, too.
        value, left = values.pack(result, subclasses=True), values.pack(arguments, subclasses=True)
        return values.dump({"value": value, "args": left})
    except values.NotPlain as error:
        return values.dump({"unfit": str(error)})
    except BaseException as error:
        # A kind of its own arrives as the built-in one that it is of.
        known = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return values.dump({"raised": known.__name__, "text": str(error)[:300]})


main()
