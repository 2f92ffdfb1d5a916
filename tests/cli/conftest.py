"""A scripted engine: commands run against answers that a test has queued."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import minicpm4
from minicpm4 import cli
from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece

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
    """What the engine is to answer (an exception in an answer is raised there), and what it was asked."""

    answers: list[list[Any]] = field(default_factory=list)
    template: bool = True
    refusal: BaseException | None = None
    loads: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    calls: list[SimpleNamespace] = field(default_factory=list)
    closed: int = 0


@dataclass
class Result:
    """What a command line gave back."""

    code: int
    out: str
    err: str


class ScriptedLLM:
    """Stands in for LLM; ``script`` is set by the fixture."""

    script: Script
    sampling_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: str, *, progress: Any, **settings: Any) -> None:
        self.script.loads.append((model, settings))
        if self.script.refusal is not None:
            raise self.script.refusal
        self.name, self.description = model, "attention: dense"
        self.has_chat_template = self.script.template

    def stream(self, prompt: str, params: Any, *, progress: Any = None) -> Iterator[Any]:
        return self._play(SimpleNamespace(kind="raw", prompt=prompt, params=params), progress)

    def stream_chat(
        self, messages: list[Any], params: Any, *, enable_thinking: Any = None, progress: Any = None
    ) -> Iterator[Any]:
        call = SimpleNamespace(kind="chat", prompt=list(messages), params=params, think=enable_thinking)
        return self._play(call, progress)

    def _play(self, call: SimpleNamespace, progress: Any) -> Iterator[Any]:
        self.script.calls.append(call)
        answer = self.script.answers.pop(0) if self.script.answers else ["Par", "is."]
        if progress is not None:
            progress(3, 7)
            progress(7, 7)
        try:
            for text in answer[:-1]:
                if isinstance(text, BaseException):
                    raise text
                yield Piece(text=text, token_ids=[1])
            yield Piece(text=answer[-1], token_ids=[1], finish_reason="stop", metrics=METRICS)
        except GeneratorExit:
            self.script.closed += 1
            raise


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Replace LLM by a scripted one."""
    made = Script()
    monkeypatch.setattr(ScriptedLLM, "script", made, raising=False)
    monkeypatch.setattr(minicpm4, "LLM", ScriptedLLM, raising=False)
    return made


@pytest.fixture
def minicpm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process: ``minicpm("generate", "--prompt", "x", stdin="")``."""

    def run(*args: str, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = cli.run(args)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
