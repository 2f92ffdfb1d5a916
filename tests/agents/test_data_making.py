"""Conversations with tools that a model makes, forward and reverse, and the command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.data.making import Maker, Query
from minicpm4.agents.mcp.data.named import answers, unnamed
from minicpm4.agents.mcp.data.talks import Dropped, Talk, fault
from minicpm4.errors import ConfigError
from minicpm4.files import Kept
from tests.agents.servers import Person, boxed, made
from tests.agents.test_agent import hermes, scripted
from tests.agents.test_data import XLAM
from tests.cli.conftest import Result, Script, minicpm, script
from tests.cli.test_mcp_agent import ALLOWED, config

Run = Callable[..., Result]
__all__ = ["config", "minicpm", "script"]


def test_a_query_names_the_values_of_its_call() -> None:
    given = {"path": "/tmp/A b.txt", "n": 3, "on": True, "list": ["x", {"y": "2.50"}]}
    assert unnamed(given, ["Read /tmp/a b.txt, 3 lines, x and '2.50'"]) == ""
    assert unnamed({"n": 1500}, ["1,500 rows"]) == "" and unnamed({"n": 3}, ["13 rows"]) == "n: 3"
    assert unnamed({"n": 10**309}, [f"{10**309} rows"]).startswith("n: 1000")
    assert unnamed({"a": "b"}, ["c", "ab"]) == "", "or a result before it does"


@pytest.mark.parametrize(
    ("given", "known", "same"),
    [
        ("It is 1,234.0 in all.", "1234", True),
        ("It is 12345.", "1234", False),
        ("The capital is PARIS.", "paris", True),
        ("", "", False),
    ],
)
def test_an_answer_is_the_known_one(given: str, known: str, same: bool) -> None:
    assert answers(given, known) is same


def makes(
    folder: Path, answers: list[str], *, manner: str = "made", pair: bool = False, query: Query | None = None
) -> tuple[Talk | Dropped, int]:
    """What is made with a scripted model, and how often that was asked."""
    model, engine = scripted(*answers)

    async def go() -> Talk | Dropped:
        async with boxed([made(manner)], Person("session")) as box:
            maker = Maker(model=model, box=box, kept=Kept(folder, {"kind": "test"}))
            if query is not None:
                return await maker.forward(query)
            (tool,) = [one for one in box.tools.values() if one.name == "add"]
            return await maker.reverse([tool, tool] if pair else [tool], 0)

    return asyncio.run(go()), len(engine.prompts)


SUM = Query(text="What is 2 + 3?", tool="made__add", answer="5")
DONE = [hermes("made__add", a=2, b=3), "It is 5."]


@pytest.mark.parametrize(
    ("answers", "query", "reason"),
    [
        (DONE, SUM, ""),
        ([DONE[0], "It is 6."], SUM, "other answer"),
        (["It is 5."], SUM, "not called"),
        ([DONE[0], " "], SUM, "not answered"),
    ],
)
def test_forward_keeps_what_ends_well(tmp_path: Path, answers: list[str], query: Query, reason: str) -> None:
    made, _ = makes(tmp_path, answers, query=query)
    assert (made.reason if isinstance(made, Dropped) else "") == reason
    assert isinstance(made, Dropped) or fault(made) is None
    assert makes(tmp_path, ["unasked"], query=query) == (made, 0), "what was made is found again"


REVERSED = [
    hermes("made__add", a=2, b=3),
    json.dumps({"request": "Please add 2 and 3 for me."}),
    hermes("made__add", a=2, b=3),
    "It is 5.",
]


def test_reverse_writes_the_query_of_a_call(tmp_path: Path) -> None:
    made, _ = makes(tmp_path, REVERSED)
    assert isinstance(made, Talk) and fault(made) is None
    assert made.query == "Please add 2 and 3 for me." and made.messages[-1]["content"] == "It is 5."
    assert [*made.calls()] == [("made__add", {"a": 2, "b": 3})]


def test_reverse_chains_two_calls(tmp_path: Path) -> None:
    wanted = json.dumps({"request": "Add 2 and 3, and 4 to what comes out."})
    made, _ = makes(
        tmp_path,
        [REVERSED[0], hermes("made__add", a=5, b=4), wanted, REVERSED[2], "It is 9."],
        pair=True,
    )
    assert isinstance(made, Talk), made
    assert [given for _, given in made.calls()] == [{"a": 2, "b": 3}, {"a": 5, "b": 4}], "5 is a result"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({1: json.dumps({"request": "Please add some numbers."})}, "unnamed value"),
        ({3: hermes("made__add", a=1, b=1)}, "not answered"),
        ({1: "no table"}, "not written"),
        ({1: json.dumps({"request": "made__add {'a': 2, 'b': 3}"})}, "tool named"),
    ],
)
def test_reverse_drops_what_does_not_lead_there(tmp_path: Path, change: dict[int, str], reason: str) -> None:
    made, _ = makes(tmp_path, [change.get(i, one) for i, one in enumerate(REVERSED)])
    assert isinstance(made, Dropped) and made.reason == reason


def test_work_of_another_kind_is_not_gone_on_with(tmp_path: Path) -> None:
    Kept(tmp_path, {"kind": "a"}).put({"x": 1}, "key")
    assert Kept(tmp_path, {"kind": "a"}).get(dict, "key") == {"x": 1}
    with pytest.raises(ConfigError, match="was begun with kind = 'a', now it is 'b'"):
        Kept(tmp_path, {"kind": "b"})


def test_the_command_converts_makes_and_goes_on(
    tmp_path: Path, minicpm: Run, script: Script, config: Path
) -> None:
    file = tmp_path / "xlam.json"
    file.write_text(json.dumps([XLAM, {**XLAM, "answers": "[]"}]))
    dry = minicpm("mcp", "data", "xlam", str(file), f"--output={tmp_path / 'x'}", "--dry-run")
    assert dry.code == 0 and "would be converted" in dry.out and not (tmp_path / "x").exists()
    done = minicpm("mcp", "data", "xlam", str(file), f"--output={tmp_path / 'x'}")
    assert done.code == 0 and "1 conversations with 1 calls" in done.out and "left out 1, no call" in done.out
    queries = ["What is 1 plus 1?", "What is 2 plus 1?"]
    script.answers = [json.dumps(queries), hermes("sums__add", a=1, b=1), "2"]
    words = (
        "mcp",
        "data",
        "forward",
        f"--config={config}",
        f"--output={tmp_path / 'f'}",
        "--count=2",
        *ALLOWED,
    )
    script.answers += [hermes("sums__add", a=2, b=1), "3"]
    done = minicpm(*words)
    assert done.code == 0 and "2 conversations with 2 calls" in done.out, done
    again = minicpm(*words)
    assert again.out == done.out and not script.answers, "nothing is made anew"
    for more in ("--seed=1", "--attention=dense", "--endpoint=http://h/v1"):
        other = minicpm(*words, more)
        assert other.code == 2 and "was begun with" in other.err, more


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("forwards",), "did you mean 'forward'?"),
        (("xlam",), "xlam needs files"),
        (("reverse", "x.json"), "reverse takes no files"),
        (("forward", "--queries={empty}"), "line 1 has no query"),
        (("reverse", "--queries=x"), "--queries says nothing to reverse"),
        (("forward", "--pairs"), "--pairs says nothing to forward"),
        (("forward", "--unverified"), "--verify/--unverified says nothing to forward"),
        (("forward", "--queries=x", "--count=3"), "--count says nothing to --queries"),
        (("forward", "--queries=x", "--tool=a.b"), "--tool says nothing to --queries"),
        (("xlam", "x.json", "--count=3"), "--count says nothing to xlam"),
        (("xlam", "x.json", "--tool=a.b"), "--tool says nothing to xlam"),
        (("xlam", "x.json", "--model=m"), "--model says nothing to xlam"),
        (("xlam", "x.json", "--temperature=1"), "--temperature says nothing to xlam"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, minicpm: Run, words: tuple[str, ...], told: str) -> None:
    (tmp_path / "empty").write_text('{"query": " "}')
    words = tuple(word.format(empty=tmp_path / "empty") for word in words)
    done = minicpm("mcp", "data", *words, f"--output={tmp_path / 'out'}")
    assert done.code == 2 and told in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("forward", "--tool=sums.nothing"), "sums.nothing"),
        (("reverse", "--tool=sums.nothing"), "sums.nothing"),
        (("reverse", "--pairs"), "no server has two tools"),
    ],
)
def test_what_is_refused_late_leaves_nothing(
    tmp_path: Path, minicpm: Run, config: Path, words: tuple[str, ...], told: str
) -> None:
    output = tmp_path / "a" / "b"
    done = minicpm("mcp", "data", *words, f"--config={config}", f"--output={output}", *ALLOWED)
    assert done.code == 2 and told in done.err and not output.parent.exists(), done


@pytest.mark.parametrize(
    "value",
    [
        7,
        {"reason": 5, "where": ""},
        {"messages": [], "tools": []} | {"odd": 1},
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}],
            "tools": [],
        },
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]},
    ],
)
def test_a_kept_conversation_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    makes(tmp_path, REVERSED)
    (file,) = [
        one for one in tmp_path.glob("*.json") if json.loads(one.read_text()).get("key", "-")[0] == "reverse"
    ]
    file.write_text(json.dumps({**json.loads(file.read_text()), "value": value}))
    with pytest.raises(ConfigError, match=r"remove .*\.json to have that piece made anew"):
        makes(tmp_path, REVERSED)
