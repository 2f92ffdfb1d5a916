"""lm-evaluation-harness, by its own command, on tasks that lie in files: its log likelihoods are ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import needed
from tests.serve.processes import PYTHON, ROOT, Running

needed("lm_eval")

CAPITALS = {
    "The capital of France is": ["Paris", "Rome", "purple", "Addis Ababa"],
    "The capital of Ethiopia is": ["Paris", "Rome", "purple", "Addis Ababa"],
    "Ein Fluss in Köln: der": ["Rhein", "Nil", "löffel", "日本"],
}
TEXTS = ["The river runs to the sea, and the sea is wide.", "Rain — 雨 — falls.\n\nIt stops at noon."]
QUESTIONS = ["Q: What is the capital of France?\nA:", "Q: What is two plus two?\nA:"]
TASKS = {
    "capitals": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "questions": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "bypass"}],
    },
}
DOCUMENTS: dict[str, list[Any]] = {
    "capitals": [{"text": text, "choices": choices} for text, choices in CAPITALS.items()],
    "texts": [{"text": text} for text in TEXTS],
    "questions": [{"text": text} for text in QUESTIONS],
}

# What the package itself says of the same texts: pairs of a beginning and an end, cut as the harness does.
SCORES = """
import json, sys
from minicpm4 import LLM, SamplingParams
asked = json.load(sys.stdin)
with LLM("smollm2-135m-instruct", context=2048, threads=2) as llm:
    def score(ids, start):
        return -float(llm.nll(ids)[start - 1:].sum(dtype="float64"))
    def encode(text):
        return llm.tokenizer.encode(text, add_special_tokens=False)
    pairs = [score(encode(a + b), len(encode(a))) for a, b in asked["pairs"]]
    first = llm.tokenizer.bos_token_id
    texts = [score([first, *encode(text)], 1) for text in asked["texts"]]
    params = SamplingParams(max_tokens=12, temperature=0, stop=["\\n"])
    said = [one.text for one in llm.generate(asked["questions"], params)]
    chats = [[{"role": "user", "content": text}] for text in asked["questions"]]
    answered = [llm.chat(chat, params).text for chat in chats]
print(json.dumps({"pairs": pairs, "texts": texts, "said": said, "answered": answered}))
"""


@pytest.fixture(scope="module")
def ours() -> Any:
    """What the package says in a process of its own."""
    pairs = [(text, " " + choice) for text, choices in CAPITALS.items() for choice in choices]
    asked = json.dumps({"pairs": pairs, "texts": TEXTS, "questions": QUESTIONS})
    found = subprocess.run(
        [PYTHON, "-c", SCORES], cwd=ROOT, input=asked, capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout)


def harness(model: str, address: str, folder: Path, tasks: list[str], *more: str) -> dict[str, list[Any]]:
    """What it was answered, by task."""
    for name in tasks:
        documents = folder / f"{name}.jsonl"
        documents.write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS[name]), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(documents)}},
            "test_split": "test",
            "target_delimiter": " ",
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", ",".join(tasks)]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples", *more]
    command += ["--model_args", f"model=small,base_url={address},max_retries=1"]
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    found = subprocess.run(
        command, env={**os.environ, **home}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-6000:]
    samples = {}
    for name in tasks:
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines()
        samples[name] = sorted((json.loads(line) for line in lines), key=lambda one: one["doc_id"])
    return samples


@pytest.mark.parametrize("together", [1, 4])
def test_completions(small_server: Running, ours: Any, tmp_path: Path, together: int) -> None:
    """Tokens come from /tokenizer_info and /tokenize. What is read together changes no score."""
    address = f"{small_server.address}/v1/completions"
    found = harness("local-completions", address, tmp_path, list(TASKS), "--batch_size", str(together))
    pairs = [pair for one in found["capitals"] for pair in one["filtered_resps"]]
    assert [float(score) for score, _ in pairs] == pytest.approx(ours["pairs"], rel=1e-5)
    assert found["capitals"][0]["acc"] == 1.0
    texts = [one["resps"][0][0] for one in found["texts"]]
    assert [float(score) for score in texts] == pytest.approx(ours["texts"], rel=1e-5)
    said = [one["resps"][0][0] for one in found["questions"]]
    assert said == ours["said"] and "Paris" in said[0]


def test_chat(small_server: Running, ours: Any, tmp_path: Path) -> None:
    address = f"{small_server.address}/v1/chat/completions"
    found = harness("local-chat-completions", address, tmp_path, ["questions"], "--apply_chat_template")
    assert [one["resps"][0][0] for one in found["questions"]] == ours["answered"]
