"""Functions that models write are run against their tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicpm4 import SamplingParams
from minicpm4.cli import eval_code, run
from minicpm4.errors import ConfigError, RequestError
from minicpm4.evals.code import STOPS, Answer, Problem, ask, code_of, pass_at_one, read_problems
from minicpm4.files import Kept
from minicpm4.text.reasoning import split_reasoning
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.sandbox.conftest import sandbox  # noqa: F401 - skips where there is none

PROMPT = 'import math\n\n\ndef twice(x):\n    """Twice x.\n    >>> twice(2)\n    4\n    """\n'
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0.5) == 1\n"
PROBLEM = Problem(task="T/0", prompt=PROMPT, tests=TESTS, name="twice")
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


class Writer:
    """In a model's place: says what it is told to."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked, self.stops = list(texts), 0, ()
        self.replies = SimpleNamespace(apart=lambda text, ids, prompt: split_reasoning(text))
        self.tokenizer = SimpleNamespace(vocab_size=9, encode=lambda text: [1])

    def chat_ids(self, messages: Any) -> list[int]:
        return [1, 2]

    def prompt_ids(self, prompt: Any) -> list[int]:
        return prompt if isinstance(prompt, list) else [len(prompt)]

    def checked(self, batch: list[list[int]], params: Any) -> None:
        if max(batch[0]) > 1000:
            raise RequestError("it is too long")

    def generate(self, prompts: list[Any], params: list[Any]) -> list[Any]:
        assert prompts
        self.asked, self.stops = self.asked + len(prompts), params[0].stop
        return [SimpleNamespace(text=self.texts.pop(0), token_ids=[1], finish_reason="stop") for _ in prompts]


def line(**changes: Any) -> str:
    row = {"task_id": "T/0", "prompt": PROMPT, "test": TESTS, "entry_point": "twice"} | changes
    return json.dumps(row) + "\n"


@pytest.mark.parametrize(
    ("style", "text", "passed"),
    [
        ("complete", "    return 2 * x\n\ndef other():\n    syntax error", True),
        ("complete", "    return x\n", False),
        (
            "chat",
            "Here:\n```python\ndef twice(x):\n    return 2 * math.floor(x) if x > 1 else 2 * x\n```\nDone.",
            True,
        ),
        (
            "chat",
            "<think>```\ndef twice(x):\n  return 3\n```</think>```py\ndef twice(x):\n  return x + x\n```",
            True,
        ),
        ("chat", "```\nprint('an example')\n```\nand\n```python\ndef twice(x):\n    return 2 * x\n```", True),
        ("chat", "    return 2 * x", True),
        ("chat", "```python\ndef twice(x):\n    return 2 * x", True),
        (
            "chat",
            "```bash\npip install x\n```\nThen:\n```python3\ndef twice(x):\n    return 2 * x\n```\nOK.",
            True,
        ),
        ("chat", "```{.python title='a b'}\ndef twice(x):\n    return 2 * x\n```\n```\nprint()\n```", True),
        ("chat", "```\n```\nSo ```x``` is doubled:\n```Python\ndef twice(x):\n    return 2 * x\n```", True),
        ("chat", "1. It is\n   ```py\n   def twice(x):\n       return 2 * x\n   ```\n2. Done.", True),
        ("chat", "```sh\npip install x\n```\n```\n    return 2 * x\n```", True),
        ("chat", "I would rather not.", False),
        ("chat", "```python\nimport os; os._exit(0)\n```", False),
    ],
)
def test_what_is_written_is_run(tmp_path: Path, style: str, text: str, passed: bool) -> None:
    writer: Any = Writer(text)
    (answer,) = ask(writer, [PROBLEM], Kept(tmp_path / "kept", {}), style=style, params=GREEDY)
    assert answer.passed is passed and bool(answer.why) is not passed, answer
    assert answer.code == code_of(split_reasoning(text)[1], PROBLEM, style) and answer.cut is False


@pytest.mark.parametrize(("style", "text"), [("chat", "```\n{}\n```"), ("complete", "{}")])
def test_a_head_without_a_docstring_is_one(tmp_path: Path, style: str, text: str) -> None:
    (tmp_path / "x").write_text(line(prompt="import math\ndef twice(x):\n  # Twice x.\n"))
    problems = read_problems(tmp_path / "x")
    whole = "def twice(x):\n    return " if style == "chat" else "    return "
    for number, passed in (("2 * x", True), ("x", False)):
        writer: Any = Writer(text.format(whole + number))
        (answer,) = ask(writer, problems, Kept(tmp_path / f"{passed}", {}), style=style, params=GREEDY)
        assert answer.passed is passed, answer.why


def test_a_body_ends_where_the_next_thing_begins(tmp_path: Path) -> None:
    stopped = GREEDY.changed(stop=("END",))
    for style in ("complete", "chat"):
        writer: Any = Writer("    return 2 * x")
        ask(writer, [PROBLEM], Kept(tmp_path / style, {}), style=style, params=stopped)
        assert writer.stops == (("END", *STOPS) if style == "complete" else ("END",))


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    problems = [Problem(task=f"T/{i}", prompt=PROMPT, tests=TESTS, name="twice") for i in range(3)]
    writer: Any = Writer(*["    return 2 * x"] * 3)
    kept = Kept(tmp_path / "kept", {"hash": "a"})
    ends = iter([False, True])
    first = ask(writer, problems, kept, style="complete", params=GREEDY, together=2, until=lambda: next(ends))
    assert [one.task for one in first] == ["T/0", "T/1"]
    assert len(ask(writer, problems, kept, style="complete", params=GREEDY)) == 3 and writer.asked == 3
    with pytest.raises(ConfigError, match="hash = 'a', now it is 'b'"):
        Kept(tmp_path / "kept", {"hash": "b"})


@pytest.mark.parametrize("wrong", ["5", "[]", '"x"', "null"])
def test_a_line_that_is_no_table_is_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(line() + wrong)
    with pytest.raises(ConfigError, match=r"x\.json line 2 is no table\. each line has task_id"):
        read_problems(file)


def test_what_does_not_fit_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    long = Problem(task="T/1", prompt=PROMPT + "#" * 2000, tests=TESTS, name="twice")
    writer: Any = Writer("    return 2 * x")
    kept = Kept(tmp_path / "kept", {})
    for _ in range(2):
        found = ask(writer, [long, PROBLEM], kept, style="complete", params=GREEDY)
        assert [(one.passed, one.why) for one in found] == [(False, "refused: it is too long"), (True, "")]
    assert writer.asked == 1
    (alone,) = ask(writer, [long], Kept(tmp_path / "other", {}), style="complete", params=GREEDY)
    assert not alone.passed and writer.asked == 1


def test_the_share_is_over_problems() -> None:
    rows = [("a", True), ("a", False), ("b", True), ("b", True)]
    answers = [
        Answer(task=task, sample=i, text="", code="", passed=passed, why="", tokens=1)
        for i, (task, passed) in enumerate(rows)
    ]
    mean, half = pass_at_one(answers)
    assert mean == 0.75 and half == pytest.approx(12.7062 * 0.25)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no lines"),
        (b"{]\n", "line 1"),
        (line().encode() + line(prompt=7).encode(), "line 2: prompt is no text"),
        (line(entry_point="a b").encode(), "entry_point is no name"),
        (line().encode() + line(prompt="def f(x:\n").encode(), "line 2: prompt is no Python: SyntaxError"),
        (line(test="def check(candidate):\n").encode(), "test is no Python: IndentationError"),
        (line().encode() * 2, "task_id twice"),
        (gzip.compress(line().encode())[:-9], "no whole gzip file"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_problems(file)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, found = tmp_path / "problems.jsonl.gz", tmp_path / "found.json"
    file.write_bytes(gzip.compress((line() + line(task_id="T/1")).encode()))
    model = str(make_checkpoint(tmp_path / "model"))
    args = ["eval", "code", model, "--problems", str(file), "--keep", str(tmp_path / "kept"), "-n", "4"]
    assert run([*args, "--style", "complete", "--json", str(found)]) == 0
    out = capsys.readouterr().out
    assert "0.0%" in out and out.splitlines()[-1] == "2 of 2 answers were cut at --max-tokens 4"
    report = json.loads(found.read_text())
    assert [one["task"] for one in report["answers"]] == ["T/0", "T/1"] and report["pass_at_1"] == 0
    assert report["cut"] == 2 == report["results"][0]["cut"] and all(one["cut"] for one in report["answers"])
    late = run([*args, "--style", "complete", "--minutes", "0"])
    assert late == 2 and "--minutes 0.0 is no time" in capsys.readouterr().err
    assert run([*args, "--style", "loud"]) == 2 and "loud" in capsys.readouterr().err
    assert run([*args, "--samples", "2"]) == 2 and "all the same" in capsys.readouterr().err
    assert run([*args, "--style", "complete", "-n", "5"]) == 2 and "was begun with" in capsys.readouterr().err


def test_reasons_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    why = "\x1b[2J\x9b31mE\n" + "x" * 100 + ": said the model's code"
    answer = Answer(task="a", sample=0, text="", code="", passed=False, why=why, tokens=1)
    eval_code._tell([answer], 1, 4, {"hash": "h", "style": "chat"}, None)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("not passed")]
    assert line.isprintable() and line.startswith("not passed: [2J31mE xxx") and len(line) < 80
