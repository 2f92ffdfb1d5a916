"""Problems of mathematics are read, asked and judged."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicpm4 import SamplingParams
from minicpm4.cli import run
from minicpm4.cli.eval_shares import told_cut
from minicpm4.errors import ConfigError, RequestError, UnsupportedError
from minicpm4.evals import maths
from minicpm4.evals.asking import count_cut
from minicpm4.evals.maths import Judge, Problem, ask, check, make_problems, read_problems
from minicpm4.evals.maths.judge import Verdict
from minicpm4.evals.maths.judging import SECONDS
from minicpm4.files import Kept
from minicpm4.text.reasoning import split_reasoning
from tests.fixtures.random_checkpoint import make_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
PROBLEMS = [Problem(task=str(i), question=f"{i} + 1?", answer=str(i + 1)) for i in range(3)]


@pytest.fixture(scope="module")
def judge() -> Any:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install -e '.[math]'")
    with Judge() as made:
        yield made


class Same:
    """In the judge's place: texts are right where they end in the answer."""

    def judge(self, right: str, said: str) -> Verdict:
        return Verdict(right=said.strip("$").endswith(right), read=said, why="")


class Writer:
    """In a model's place."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked, self.stops = list(texts), 0, ()
        self.replies = SimpleNamespace(apart=lambda text, ids, prompt: split_reasoning(text))

    def prompt_ids(self, prompt: Any) -> list[int]:
        return [len(prompt)]

    chat_ids = prompt_ids

    def checked(self, batch: list[list[int]], params: Any) -> None:
        if max(batch[0]) > 1000:
            raise RequestError("it is too long")

    def generate(self, prompts: list[Any], params: list[Any]) -> list[Any]:
        self.asked += len(prompts)
        self.stops = params[0].stop
        texts = [self.texts.pop(0) for _ in prompts]
        return [
            SimpleNamespace(
                text=text, token_ids=[1, 2], finish_reason="length" if text[-1:] == "…" else "stop"
            )
            for text in texts
        ]


@pytest.mark.parametrize(
    ("right", "said", "verdict"),
    [
        ("42", "So the answer is \\boxed{42}.", True),
        ("42", "It is 41, no: 42", True),
        ("42", "The answer is 41.", False),
        ("1200", "#### 1,200", True),
        ("0.5", "\\boxed{\\frac{1}{2}}", True),
        ("\\frac{3}{4}", "$0.75$", True),
        ("2", "\\boxed{2}, or maybe not", True),
        ("7", "", False),
        ("7", "I would rather not.", False),
    ],
)
def test_the_last_answer_is_compared_as_mathematics(judge: Any, right: str, said: str, verdict: bool) -> None:
    found = judge.judge(right, said)
    assert found.right is verdict and bool(found.why) is not verdict, found


def test_what_takes_too_long_is_wrong_and_the_next_is_judged(judge: Any) -> None:
    found = judge.judge("5", "\\boxed{" + "9^{" * 40 + "9" + "}" * 41)
    assert not found.right and SECONDS < 30
    assert judge.judge("5", "\\boxed{5}").right
    judge._process.kill()  # as where memory ran out
    assert judge.judge("5", "5").right or judge.judge("5", "5").right


def test_right_answers_that_are_no_mathematics_are_refused(judge: Any) -> None:
    check(PROBLEMS, judge)
    with pytest.raises(ConfigError, match=r"right answer of x is no mathematics .*'\?\?\?'"):
        check([Problem(task="x", question="?", answer="???")], judge)
    for misread in ("3 1/2", "-2 3 / 4", "3\\ 1/2", "1 000", "1_000", "1_000.5", "3½", "3 ⅓", "1.000.000"):
        with pytest.raises(ConfigError, match="right answer of x is no mathematics"):
            check([Problem(task="x", question="?", answer=misread)], judge)
    for read in ("3\\frac{1}{2}", "1,000", "7/2", "101_2", "x_1", "\\frac 1 2", "1.5"):
        check([Problem(task="x", question="?", answer=read)], judge)


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    writer: Any = Writer("1", "<think>2</think> 7", "it is 3")
    judge: Any = Same()
    kept = Kept(tmp_path / "kept", {})
    ends = iter([False, True])
    settings: Any = {"style": "complete", "params": GREEDY}
    first = ask(writer, PROBLEMS, kept, judge, together=2, until=lambda: next(ends), **settings)
    assert [one.right for one in first] == [True, False] and "\nQuestion:" in writer.stops
    found = ask(writer, PROBLEMS, kept, judge, **settings)
    assert [one.right for one in found] == [True, False, True] and writer.asked == 3
    assert found[2].tokens == 2 and found[2].seconds > 0 and found[2].wanted == "3"
    long = Problem(task="long", question="?" * 2000, answer="1")
    (refused,) = ask(writer, [long], kept, judge, **settings)
    assert not refused.right and refused.why == "refused: it is too long"


def test_what_was_cut_is_told_and_a_cut_thought_is_no_answer(tmp_path: Path) -> None:
    writer: Any = Writer("<think>It is 1", "2", "3 or …")
    kept = Kept(tmp_path / "kept", {})
    found = ask(writer, PROBLEMS, kept, Same(), style="complete", params=GREEDY)  # type: ignore[arg-type]
    assert [(one.right, one.cut) for one in found] == [(False, False), (True, False), (False, True)]
    assert count_cut(one.cut for one in found) == 1
    old = {name: value for name, value in asdict(found[2]).items() if name != "cut"}
    kept.put(old, PROBLEMS[2].task)
    again = ask(writer, PROBLEMS, kept, Same(), style="complete", params=GREEDY)  # type: ignore[arg-type]
    assert again[2].cut is None and count_cut(one.cut for one in again) is None
    assert told_cut([one.cut for one in again], "--max-tokens 8") == (
        "at least 0 of 3 answers were cut at --max-tokens 8"
    )


def test_files_are_read_in_several_layouts(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": "2 * 3 = <<2*3=6>>6\n#### 1,006"},
        {"problem": "b?", "answer": 4.5, "id": 17},
        {"prompt": "c?", "expected": " x+1 ", "task_id": "z"},
        {"prompt": "d?", "answer": 1e-05, "id": 1},
        {"prompt": "e?", "answer": "so 2.5E3\n#### 2.5E3", "id": 2},
    ]
    file = tmp_path / "p.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    more = [("1", "d?", "0.00001"), ("2", "e?", "2500")]  # math-verify reads no exponent
    found = [(one.task, one.question, one.answer) for one in read_problems(file)]
    assert found == [("0", "a?", "1,006"), ("17", "b?", "4.5"), ("z", "c?", "x+1"), *more]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no lines"),
        ("{]", "line 1"),
        ("[1]", "line 1 is no table"),
        ('{"question": "a?"}', "answer is no number"),
        ('{"question": "a?", "answer": true}', "answer is no number"),
        ('{"question": "", "answer": "1"}', "question is no text"),
        ('{"question": "\\ud800", "answer": "1"}', "line 1 holds a lone surrogate"),
        ('{"question": "a?", "answer": "1", "id": 1}\n{"question": "b?", "answer": "1", "id": 1}', "twice"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_problems(file)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"'\.\[math\]'"):
        Judge()
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(UnsupportedError, match="pip install reasoning-gym"):
        make_problems("gsm_symbolic", 1, 0)


def test_sets_of_reasoning_gym_are_made() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed here")
    one, same, other = (make_problems("basic_arithmetic", 3, seed) for seed in (0, 0, 1))
    assert one == same != other and [p.task for p in one] == [f"basic_arithmetic {i}" for i in range(3)]
    with pytest.raises(ConfigError, match="no set 'basic_arithmetics'"):
        make_problems("basic_arithmetics", 1, 0)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install -e '.[math]'")
    file, found = tmp_path / "p.jsonl", tmp_path / "found.json"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}\n')
    model = str(make_checkpoint(tmp_path / "model"))
    args = ["eval", "math", model, "--keep", str(tmp_path / "kept"), "-n", "4"]
    given = [*args, "--problems", str(file)]
    assert run([*given, "--json", str(found)]) == 0
    out = capsys.readouterr().out
    assert "0.0%" in out and out.splitlines()[-1] == "2 of 2 answers were cut at --max-tokens 4"
    report = json.loads(found.read_text())
    assert [one["task"] for one in report["answers"]] == ["0", "1"] and report["right"] == 0
    assert report["results"][0]["items"] == {"0": 0.0, "1": 0.0} and report["style"] == "chat"
    assert report["cut"] == 2 == report["results"][0]["cut"]
    for more, said in (
        (args, "no problems are named"),
        ([*given, "--problems", str(file)], "given twice"),
        ([*given, "--style", "loud"], "loud"),
        ([*given, "-n", "5"], "was begun with"),
        ([*given, "--json", str(file)], "named twice"),
        ([*args, "--problems", "nowhere"], "nowhere"),
    ):
        assert run(more) == 2 and said in capsys.readouterr().err, more
    assert maths.STYLES == ("chat", "complete")
