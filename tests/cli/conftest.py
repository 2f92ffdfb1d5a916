"""A scripted engine: commands run against answers that a test has queued."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import minicpm4
from minicpm4 import LLM, cli
from minicpm4.cli.options import EngineFlags
from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece
from minicpm4.testing import Answer, ScriptedEngine

METRICS = Metrics(
    prompt_tokens=4213,
    cached_tokens=213,
    prefill_s=2.0,
    new_tokens=11,
    decode_s=0.5,
    attention="sparse",
    blocks_read_share=0.25,
    peak_memory=300 << 20,
)


@dataclass
class Script:
    """What the engine is to answer, and what it was asked."""

    answers: list[Answer] = field(default_factory=list)
    template: bool = True
    refusal: BaseException | None = None
    loads: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    calls: list[SimpleNamespace] = field(default_factory=list)
    context: int = 4096


@dataclass
class Result:
    """What a command line gave back."""

    code: int
    out: str
    err: str


class ScriptedLLM(LLM):
    """An LLM over a scripted engine, whose figures are always METRICS; ``script`` is set by the fixture."""

    script: ClassVar[Script]

    @classmethod
    def from_inspection(cls, found: Any, progress: Any = None) -> ScriptedLLM:
        script = cls.script
        script.loads.append((found.source.name, found.settings))
        if script.refusal is not None:
            raise script.refusal
        engine = ScriptedEngine(
            lambda _: script.answers.pop(0) if script.answers else "Paris.", context=script.context
        )
        return cls.over(engine, engine.text, name=found.source.name, description="attention: dense")

    @property
    def has_chat_template(self) -> bool:
        return self.script.template

    def stream(self, prompt: Any, params: Any = None, *, progress: Any = None) -> Iterator[Piece]:
        self.script.calls.append(SimpleNamespace(kind="raw", prompt=prompt, params=params))
        return super().stream(prompt, params, progress=progress)

    def stream_chat(self, messages: Any, params: Any = None, **options: Any) -> Iterator[Piece]:
        think = options["enable_thinking"]
        call = SimpleNamespace(kind="chat", prompt=list(messages), params=params, think=think)
        self.script.calls.append(call)
        return super().stream_chat(messages, params, **options)

    def _pieces(self, *args: Any) -> Iterator[Piece]:
        for piece in super()._pieces(*args):
            yield piece if piece.metrics is None else replace(piece, metrics=METRICS)


class Terminal(io.StringIO):
    """Somebody types."""

    def isatty(self) -> bool:
        return True


def inspected(options: EngineFlags, model: str) -> SimpleNamespace:
    """Stands in for the opening of a model: nothing is opened."""
    settings = options.settings()
    source = SimpleNamespace(name=model)
    return SimpleNamespace(source=source, text=None, asked=SimpleNamespace(**settings), settings=settings)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Replace LLM by a scripted one."""
    made = Script()
    monkeypatch.setattr(ScriptedLLM, "script", made, raising=False)
    monkeypatch.setattr(minicpm4, "LLM", ScriptedLLM, raising=False)
    monkeypatch.setattr(EngineFlags, "inspect", inspected)
    return made


@pytest.fixture
def minicpm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process: ``minicpm("generate", "--prompt", "x", stdin="")``."""

    def run(*args: str, stdin: str = "", terminal: bool = False) -> Result:
        monkeypatch.setattr("sys.stdin", Terminal(stdin) if terminal else io.StringIO(stdin))
        code = cli.run(args)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
