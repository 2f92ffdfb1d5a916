"""The commands end to end, with the embedded model."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result

Run = Callable[..., Result]
EXAMPLES = Path(__file__).parents[2] / "examples"
SPARSE = "topk=8,window=256,dense_len=1024"
GREEDY = ("--temperature", "0", "--context", "1024")


def test_generate_answers(minicpm: Run) -> None:
    question = "What is the capital of France?"
    result = minicpm("generate", "--prompt", question, "--max-tokens", "24", *GREEDY, "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert "Paris" in answer["text"]
    assert answer["metrics"]["attention"] == "dense"


def test_generate_reads_sparsely(minicpm: Run, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    sparse = ("--sparse", "topk=2,window=128,dense_len=-1", "--max-tokens", "4")
    result = minicpm("generate", "--raw", "--prompt-file", str(file), *sparse, *GREEDY, "--json")
    metrics = json.loads(result.out)["metrics"]
    assert metrics["attention"] == "sparse"
    assert 0.2 < metrics["blocks_read_share"] < 0.8


@pytest.mark.slow
def test_the_example_is_answered_sparsely(minicpm: Run) -> None:
    question = (EXAMPLES / "question.txt").read_text(encoding="utf-8")
    args = ("--prompt-file", str(EXAMPLES / "how_sqlite_is_tested.txt"), "--prompt", question)
    sparse = ("--attention", "sparse", "--sparse", "topk=12,window=256")  # those of make run
    result = minicpm("generate", *args, *sparse, "--temperature", "0", "--max-tokens", "48", "--json")
    answer = json.loads(result.out)
    assert "Manuel Rigger" in answer["text"]
    assert answer["metrics"]["blocks_read_share"] < 0.4


def test_chat_keeps_the_cache(minicpm: Run) -> None:
    talk = "What is the capital of France?\nAnd of Italy?\nThank you.\n/stats\n"
    result = minicpm("chat", "--max-tokens", "24", *GREEDY, stdin=talk)
    assert result.code == 0, result.err
    assert "Paris" in result.out and "Rome" in result.out
    assert "(64 of the prompt were known)" in result.err  # whole pages of 64 tokens are kept


def test_info_describes_the_embedded_model(minicpm: Run) -> None:
    result = minicpm("info", "smollm2-135m-instruct", "--context", "4096", "--sparse", SPARSE)
    assert (result.code, result.err) == (0, "")
    assert "134,515,008" in result.out and "<|im_end|>" in result.out
    assert "Q4_1" in result.out and "int4-g32" in result.out
    assert "topk 8" in result.out and "at most 12 blocks" in result.out
    assert "memory for a context of 4,096 tokens" in result.out


def test_info_says_why_sparse_attention_is_not_used(minicpm: Run) -> None:
    result = minicpm("info", "smollm2-135m-instruct", "--context", "4096", "--sparse", "topk=8")
    assert "not used: the context is shorter than dense_len = 8,192" in result.out


def test_info_refuses_what_does_not_fit(minicpm: Run) -> None:
    result = minicpm("info", "smollm2-135m-instruct", "--context", "16000000", "--kv", "float32")
    assert result.code == 2
    assert "a context of 16,000,000 tokens needs" in result.err and "are available" in result.err


def test_models_shows_the_embedded_model(minicpm: Run) -> None:
    assert re.search(r"^smollm2-135m-instruct +yes ", minicpm("models").out, re.MULTILINE)
    listed = json.loads(minicpm("models", "--json").out)
    assert {"name", "present", "size", "source"} <= set(listed[0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "--model", "smolm2-135m-instruct", "-p", "x"], "did you mean 'smollm2-135m-instruct'?"),
        (["info", "minicpm4-8b"], "run: minicpm4 pull minicpm4-8b"),
        (["generate", "--backend", "gpu", "-p", "x"], "backend 'gpu'"),
        (["generate", "--attention", "spars", "-p", "x"], "did you mean 'sparse'?"),
        (["generate", "--attention", "dense", "--sparse", "topk=4", "-p", "x"], "exclude one another"),
    ],
)
def test_errors_name_the_remedy(
    minicpm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], message: str
) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    # Where Triton is installed for its interpreter, the GPU's kernels would answer, in many minutes.
    monkeypatch.setattr("minicpm4.kernels.registry.find_spec", lambda name: None)
    result = minicpm(*args)
    assert (result.code, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_chat_in_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("pyte")
    from scripts.terminal import CTRL_C, ENTER, Terminal

    command = [sys.executable, "-m", "minicpm4", "chat", "--max-tokens", "900", *GREEDY]
    with Terminal(command, {**os.environ, "MINICPM4_CHAT": str(tmp_path)}) as chat:
        chat.ready()
        chat.send("What is the capital of France? Answer in one word." + ENTER)
        chat.expect("Paris")
        chat.ready()
        chat.send("/reset" + ENTER)
        chat.ready()
        chat.send("Write a long story about a fox." + ENTER)
        chat.expect("fox", 2)
        chat.send(CTRL_C)
        chat.expect("[stopped]")
        chat.ready()
        chat.send("/nonsense" + ENTER)
        chat.expect("there is no command /nonsense")
        chat.ready()
        chat.send("/exit" + ENTER)
        assert chat.wait() == 0
        assert "Traceback" not in chat.text
