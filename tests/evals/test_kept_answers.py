"""What was kept of one model is not taken for another's that was put in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import LLM
from minicpm4.agents.mcp.models import Local
from minicpm4.cli import run
from minicpm4.cli.asked_model import AskedModel
from minicpm4.cli.options import EngineFlags
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.errors import ConfigError
from minicpm4.evals import maths
from minicpm4.evals.maths.judge import Verdict
from minicpm4.files import Kept
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.sandbox.conftest import sandbox  # noqa: F401 - skips where there is none

FUNCTION = {
    "task_id": "T/0",
    "prompt": "def twice(x):\n    '''Twice x.'''\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "twice",
}
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "code": (FUNCTION, ["--style", "complete", "-n", "2"]),
    "math": ({"question": "1 + 1?", "answer": "2"}, ["-n", "2"]),
    "ruler": (None, ["--kinds", "vt", "--each", "1", "--plain", "--lengths", "512"]),
    "sparse": (None, ["--length", "1024", "--no-speeds", "--setting", "topk=2,window=64"]),
}


class Nobody:
    """In the judge's place."""

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_: object) -> None: ...

    def judge(self, right: str, said: str) -> Verdict:
        return Verdict(right=right in said, read=said, why="")


@pytest.mark.parametrize("name", COMMANDS)
def test_answers_of_other_weights_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maths, "Judge", Nobody)
    model, kept, row = tmp_path / "model", tmp_path / "kept", COMMANDS[name][0]
    make_checkpoint(model, max_position_embeddings=1024)
    args = ["eval", name, str(model), "--keep", str(kept), *COMMANDS[name][1]]
    if row is not None:
        (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
        args += ["--problems", str(tmp_path / "problems.jsonl")]
    assert run(args) == 0
    answers = {file: file.read_bytes() for file in kept.rglob("*.json")}
    assert run(args) == 0 and {file: file.read_bytes() for file in kept.rglob("*.json")} == answers
    capsys.readouterr()
    change_a_weight(model)
    assert run(args) == 2
    assert "was begun with weights = " in capsys.readouterr().err
    assert {file: file.read_bytes() for file in kept.rglob("*.json")} == answers


def test_calls_of_other_weights_are_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    asked = AskedModel(model=str(model), endpoint=None, engine=EngineFlags(), sampling=SamplingFlags())
    begun = [_about(asked), _about(asked)]
    assert begun[0] == begun[1] and begun[0]["weights"]
    change_a_weight(model)
    Kept(tmp_path / "kept", begun[0])
    with pytest.raises(ConfigError, match="was begun with weights = "):
        Kept(tmp_path / "kept", _about(asked))


def _about(asked: AskedModel) -> dict[str, Any]:
    with LLM(asked.model, threads=1) as llm:
        return asked.about(Local.of(llm))


def change_a_weight(model: Path) -> None:
    """By one bit, the last that is stored: shape and norms are as they were, as where a model is rounded
    anew."""
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
