"""``minicpm4 chat`` in a process of its own, over a scripted model: it says what it heard.

"hang" is not answered, "half" is answered in part, "ocean" with words and code,
"nothing" with nothing, "long" with 60 letters.
"""

from __future__ import annotations

import sys
import threading

import minicpm4
from minicpm4.cli import main
from minicpm4.cli.options import EngineFlags
from minicpm4.testing import Answer, ScriptedEngine
from tests.cli.conftest import Script, ScriptedLLM, inspected

CONTEXT = 400
CODE = 'print("The North Atlantic Ocean, and what comes")'
END = "That is all there is to say of the iceberg."
OCEAN = f"The iceberg traveled from the North Atlantic Ocean, and back.\n```\n{CODE}\n```\n{END}"


def answer(prompt: str) -> Answer:
    """What is said to the last question of a prompt."""
    asked = prompt.rpartition("user\n")[2].removesuffix("\nassistant\n")
    scenes: dict[str, Answer] = {
        "hang": [threading.Event()],
        "half": ["half of it ", threading.Event()],
        "nothing": "",
        "long": "z" * 60,
        "ocean": [OCEAN[:34], OCEAN[34:]],
    }
    return scenes.get(asked, f"heard {asked!r}")


class ScriptedChat(ScriptedLLM):
    """A model that hears."""

    @classmethod
    def from_inspection(cls, found: object, progress: object = None) -> ScriptedChat:
        engine = ScriptedEngine(answer, context=CONTEXT)
        return cls.over(engine, engine.text, name="parrot", description="attention: dense")


if __name__ == "__main__":
    ScriptedChat.script = Script()
    minicpm4.LLM = ScriptedChat  # type: ignore[misc]
    EngineFlags.inspect = inspected  # type: ignore[assignment,method-assign]
    sys.argv[0] = "minicpm4"
    main()
