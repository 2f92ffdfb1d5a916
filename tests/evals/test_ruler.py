"""RULER's kinds: whoever knows the truth has all of them right, whoever guesses none."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicpm4.cli import run
from minicpm4.errors import ConfigError
from minicpm4.evals.ruler import KINDS, Maker, effective_length, score_of, scores, words
from minicpm4.evals.ruler.running import Answer, averages
from tests.fixtures.random_checkpoint import make_checkpoint

HAYSTACK = [f"Sentence {i} of the text says little." for i in range(50)]


# Letters of one more item, where it is more than a sentence: two documents, a needle with two UUIDs.
ITEM = {"qa_1": 320, "qa_2": 320, "niah_multikey_3": 120}


def encode(text: str, begin: str) -> list[int]:
    """A tokenizer of letters and digits: one token for each."""
    return [*f"{text}\n{begin}".encode()]


def solved(name: str, prompt: str) -> str:
    """What somebody answers who reads the text and knows the rules, but not how it was made."""
    text, _, begin = prompt.rpartition("\n")
    if name.startswith("niah"):
        asked = re.findall(r"[0-9a-z]+(?:-[0-9a-z]+)+", begin)
        facts = re.findall(r"The secret \w+ of (\S+) is (\S+)\.", text)
        return " ".join(value for key, value in facts if key in asked)
    if name == "vt":
        value, known = re.findall(r"\d+", begin)[0], []
        for left, right in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
            if right == value or right in known:
                known.append(left)
        return " ".join(known)
    if name == "cwe":
        counts = Counter(re.findall(r"\d+\. (\w+)", text))
        return " ".join(word for word, _ in counts.most_common(10))
    if name == "fwe":
        counts = Counter(word for word in text.split("\n\n")[1].split() if word != "...")
        return " ".join(word for word, _ in counts.most_common(3))
    person = re.findall(r"(?:was|employer of) (\w+ \w+) (?:born|its seat)", text.split("Question:")[1])[0]
    if name == "qa_1":
        return re.findall(rf"{person} was born in (\w+)", text)[0]
    house = re.findall(rf"{person} was born.*?has worked for (\w+ \w+) since", text)[0]
    return re.findall(rf"{house} was founded in \d+ and has its seat in (\w+)", text)[0]


@pytest.mark.parametrize("name", KINDS)
def test_who_knows_is_right_and_who_guesses_is_wrong(name: str) -> None:
    maker, kind = Maker(encode, HAYSTACK, seed=3), KINDS[name]
    for length in (8000, 20_000):
        for index in range(3):
            sample = maker.sample(kind, length, index)
            prompt = bytes(sample.prompt).decode()
            assert score_of(kind, solved(name, prompt), sample.references) == 1.0
            assert score_of(kind, "I do not know: 1234, mouse, Springfield", sample.references) == 0.0
            begin = prompt.rpartition("\n")[2]
            assert not any(one.lower() in begin.lower() for one in sample.references)
            size = len(sample.prompt) + sample.tokens
            assert 0.99 * length - ITEM.get(name, 50) <= size <= length, size


def test_keys_of_two_words_come_to_an_end_and_questions_go_on() -> None:
    """There are 4,160 of two; at 50,000 words of needles 7,000 are needed."""
    kind = KINDS["niah_multikey_2"]
    sample = Maker(lambda text, begin: [*range(len(text.split()))], HAYSTACK).sample(kind, 50_000, 0)
    assert 0.995 * 50_000 - 7 <= len(sample.prompt) + sample.tokens <= 50_000
    assert len(set(words.keys(random.Random(0), 300_000))) == 300_000
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", one) for one in words.keys(random.Random(0), 4160))


def test_samples_are_a_function_of_the_seed() -> None:
    kind = KINDS["niah_multikey_1"]
    one, same, other = (Maker(encode, HAYSTACK, seed=seed).sample(kind, 3000, 1) for seed in (0, 0, 1))
    assert one == same and one.prompt != other.prompt
    assert Maker(encode, HAYSTACK).sample(kind, 3000, 2).references != one.references


def test_parts_count_where_all_are_wanted_and_one_is_enough_elsewhere() -> None:
    assert score_of(KINDS["niah_multivalue"], "1, 2", ["1", "2", "3", "4"]) == 0.5
    assert score_of(KINDS["qa_1"], "in ROTTERDAM, I think", ["Rotterdam", "Delft"]) == 1.0
    assert score_of(KINDS["vt"], "abc", ["ABC"]) == 1.0


def test_lengths_that_are_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few for cwe: its shortest question takes"):
        Maker(encode, HAYSTACK).sample(KINDS["cwe"], 500, 0)
    with pytest.raises(ConfigError, match="empty"):
        Maker(encode, [])


def answer(length: int, score: float, kind: str = "vt", index: int = 0) -> Answer:
    about = {"kind": kind, "length": length, "index": index, "score": score}
    return Answer(**about, prompt_tokens=1, text="", references=("A",), read=1.0)


def test_the_effective_length_ends_before_the_first_that_is_too_bad() -> None:
    found = scores([answer(1000, 0.9), answer(2000, 0.8), answer(4000, 1.0)])
    assert effective_length(found) == 1000 and effective_length(found, 0.8) == 4000
    assert effective_length(found, 0.95) is None


def test_lengths_that_were_asked_in_part_have_no_average() -> None:
    """The easy kinds of a length may have been asked before time was up, the others not."""
    whole = [answer(length, 1.0, kind) for length in (1000, 4000) for kind in ("vt", "cwe")]
    found = scores([*whole, answer(2000, 1.0)])
    assert averages(found, 2) == {1000: 1.0, 4000: 1.0} and averages(found)[2000] == 1.0
    assert effective_length(found, wanted=2) == 1000
    found = scores(whole)
    assert effective_length(found, wanted=2) == 4000
    assert effective_length(found, lengths=(1000, 2000, 4000), wanted=2) == 1000
    assert effective_length(found, wanted=4) is None


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    model = str(make_checkpoint(tmp_path / "model", max_position_embeddings=4096))
    args = ["eval", "ruler", model, "--keep", str(tmp_path / "kept"), "--kinds", "vt,qa_1", "--each", "2"]
    return [*args, "--plain", "--sparse", "topk=4,window=128,dense_len=-1"]


def test_the_command_compares_both_ways(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    more = ["--both", "--json", str(found), "--plot", str(plot)]
    assert run([*command, "--lengths", "1024,2048", *more]) == 0
    out = capsys.readouterr().out
    report = json.loads(found.read_text())
    assert len(report["answers"]["dense"]) == 8 and report["hash"] in out
    reads = {way: {one["read"] for one in each} for way, each in report["scores"].items()}
    assert reads["dense"] == {1.0} and max(reads["sparse"]) < 1.0
    assert (tmp_path / "plot-dense.svg").exists() and (tmp_path / "plot-sparse.svg").exists()


def test_a_kind_is_asked_once_and_what_time_is_left_for(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found.json"
    shown = [*command, "--kinds", "vt,vt", "--lengths", "1024,2048", "--json", str(found)]
    assert run([*shown, "--keep", str(tmp_path / "once")]) == 0
    assert len(json.loads(found.read_text())["answers"]["auto"]) == 4, "a kind is asked once"
    capsys.readouterr()
    seen = iter(range(3))
    clock = SimpleNamespace(monotonic=lambda: 0.0 if next(seen, None) is not None else math.inf)
    monkeypatch.setattr("minicpm4.cli.eval_ruler.time", clock)
    assert run([*shown, "--keep", str(tmp_path / "part"), "--minutes", "1"]) == 0
    told = capsys.readouterr()
    assert "1 questions (auto) are left" in told.err, told.err
    (row,) = [one.split() for one in told.out.splitlines() if one.startswith("average")]
    assert len(row) == 2, "of the second length there is no average"


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--lengths", "64"], "too few for vt"), (["--kinds", "vt,wt"], "'wt' is no kind")],
)
def test_the_command_refuses(
    command: list[str], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run([*command, *more]) == 2 and said in capsys.readouterr().err
