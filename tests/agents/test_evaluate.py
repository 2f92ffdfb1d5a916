"""Scores of calls, against those that were computed by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.evaluate import (
    Mark,
    Sample,
    Scores,
    Setting,
    evaluate,
    fitting,
    offered,
    read_pool,
    read_samples,
    score_of,
)
from minicpm4.agents.mcp.models import Endpoint
from minicpm4.cli.asked_model import AskedModel
from minicpm4.cli.mcp_tasks import _outcome
from minicpm4.cli.options import EngineFlags
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.errors import ConfigError
from minicpm4.files import Kept
from tests.agents.test_agent import hermes, scripted
from tests.cli.conftest import Result, Script, minicpm, script

Run = Callable[..., Result]
__all__ = ["minicpm", "script"]


def tool(name: str, description: str = "", **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


ADD = tool("sums__add", "Add two numbers.", a="integer", b="integer")
NOW = tool("time__now", "The time in a zone.", zone="string")


def talk(*calls: tuple[str, dict[str, Any]], task: str = "Add 2 and 3.") -> dict[str, Any]:
    """A conversation in which a call follows the other."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    for i, (name, given) in enumerate(calls):
        call = {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": given}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{i}", "name": name, "content": f"r{i}"})
    return {"messages": [*messages, {"role": "assistant", "content": "Done."}], "tools": [ADD, NOW]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four calls: three of sums, one of time."""
    made = tmp_path / "talks.jsonl"
    talks = [
        talk(("sums__add", {"a": 2, "b": 3}), ("sums__add", {"a": 5, "b": 4})),
        talk(("time__now", {"zone": "Asia/Tokyo"}), task="What time is it in Tokyo?"),
        talk(("sums__add", {"a": 1, "b": 1})),
    ]
    made.write_text("".join(json.dumps(one) + "\n" for one in talks))
    return made


ANSWERS = (
    hermes("sums__add", a=2, b=3),  # right
    hermes("sums__add", a=5, b=5),  # a wrong value
    hermes("time__now"),  # a parameter is missing
    "I do not know.",  # no call
)


def test_each_call_is_a_sample_with_the_right_steps_before_it(file: Path) -> None:
    samples = read_samples(file)
    assert [(one.server, len(one.messages)) for one in samples] == [
        *(("sums", 1), ("sums", 3), ("time", 1), ("sums", 1))
    ]


def test_scores_are_those_computed_by_hand(file: Path) -> None:
    model, engine = scripted(*ANSWERS)
    marks = asyncio.run(evaluate(model, read_samples(file)))
    assert score_of(marks) == Scores(4, 3 / 4, 2 / 4, 1 / 4)
    assert score_of(one for one in marks if one.server == "sums") == Scores(3, 2 / 3, 2 / 3, 1 / 3)
    assert score_of(one for one in marks if one.server == "time") == Scores(1, 1.0, 0.0, 0.0)
    assert '"a": 2, "b": 3' in engine.prompts[1] and "r0" in engine.prompts[1]


@pytest.mark.parametrize(
    ("wanted", "given", "right"),
    [
        ({"a": 3}, {"a": 3.0}, True),
        ({"a": " x "}, {"a": "x"}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": [1, {"b": 2}]}, {"a": [1.0, {"b": 2}]}, True),
        ({"a": "3"}, {"a": 3}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": 10**309}, {"a": 10**309}, True),
        ({"a": 2**60}, {"a": [2**60 + 1, 10**309]}, False),
        ({"a": 2**60}, {"a": 2**60 + 1}, False),
    ],
)
def test_values_are_compared_by_what_they_are(wanted: Any, given: Any, right: bool) -> None:
    assert Mark(server="s", wanted=("f", wanted), given=("f", given)).values is right


def test_no_call_and_another_call_are_wrong_in_all() -> None:
    for given in (None, ("g", {"a": 1})):
        mark = Mark(server="s", wanted=("f", {"a": 1}), given=given)
        assert not (mark.function or mark.names or mark.values)


def sample(name: str, asked: str) -> Sample:
    return Sample(messages=[{"role": "user", "content": asked}], tools=[ADD], calls=[(name, {})])


def test_the_right_tools_are_among_those_that_are_offered() -> None:
    pool = [ADD, NOW, *(tool(f"s{i}__t{i}", f"Thing {i}") for i in range(50))]
    one = sample("sums__add", "Add.")
    names = [one["function"]["name"] for one in offered(one, pool, 5)]
    assert len(set(names)) == 5 and "sums__add" in names
    assert offered(one, pool, 5) == offered(one, pool, 5), "always the same"
    assert offered(one, pool, None) == [ADD] and len(offered(one, pool, 100)) == 52


def test_half_a_character_is_no_hindrance() -> None:
    pool = [ADD, *({"type": "function", "function": {"name": f"t{i}"}} for i in range(9))]
    assert len(offered(sample("sums__add", "\ud800"), pool, 3)) == 3


def test_a_search_offers_what_it_finds() -> None:
    pool = [ADD, NOW, *(tool(f"s{i}__t{i}", f"Thing {i}") for i in range(50))]
    found = offered(sample("sums__add", "Which time is it in this zone?"), pool, 1, retrieve=True)
    assert found == [NOW]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no conversation with calls"),
        ("{", "line 1 is not JSON"),
        ("[]", "no conversation with tools"),
        (json.dumps({"messages": [], "tools": []}), "no conversation with calls"),
        (json.dumps({**talk(("sums__sub", {}))}), "not among its tools"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, told: str) -> None:
    made = tmp_path / "x.jsonl"
    made.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_samples(made)


def test_the_command_prints_the_table_and_writes_every_call(
    tmp_path: Path, minicpm: Run, script: Script, file: Path
) -> None:
    script.answers = list(ANSWERS)
    output = tmp_path / "scores.json"
    done = minicpm("mcp", "eval", str(file), f"--output={output}")
    assert done.code == 0
    rows = {line.split()[0]: line.split()[-4:] for line in done.out.splitlines() if line}
    assert rows["sums"] == ["3", "66.7", "66.7", "33.3"] and rows["time"] == ["1", "100.0", "0.0", "0.0"]
    assert rows["all"] == ["4", "75.0", "50.0", "25.0"]
    written = json.loads(output.read_text())
    assert written["scores"]["all"]["function"] == 0.75 and len(written["calls"]) == 4
    assert written["calls"][3]["given"] is None and written["held"] is True


def test_free_calls_are_not_held(minicpm: Run, script: Script, file: Path) -> None:
    script.answers = [hermes("sums__sub", a="x")] * 4
    done = minicpm("mcp", "eval", str(file), "--free")
    assert done.code == 0 and "0.0" in done.out
    assert all(call.params.calls is None for call in script.calls)


@pytest.mark.parametrize(
    "words", [("--offer=0",), ("--retrieve",), ("--free", "--must-call")], ids=lambda words: words[0]
)
def test_what_does_not_go_together_is_refused_before_loading(
    minicpm: Run, script: Script, file: Path, words: tuple[str, ...]
) -> None:
    assert minicpm("mcp", "eval", str(file), *words).code == 2 and script.loads == []


def test_an_answer_that_was_meant_for_a_call_is_asked_for_as_one_where_calls_are_held(file: Path) -> None:
    """As Qwen2.5-Coder writes it after its template's example, with braces doubled."""
    meant = '{{"name": "sums__add", "arguments": {"a": 2, "b": 3}}}'
    sample = read_samples(file)[:1]
    model, engine = scripted(meant, ANSWERS[0])
    assert score_of(asyncio.run(evaluate(model, sample))).values == 1.0 and len(engine.prompts) == 2
    model, engine = scripted(meant, ANSWERS[0])
    free = asyncio.run(evaluate(model, sample, Setting(held=False)))
    assert score_of(free).function == 0.0 and len(engine.prompts) == 1


def test_answers_are_kept_and_found_again(tmp_path: Path, file: Path) -> None:
    kept = Kept(tmp_path / "kept", {"kind": "test"})
    samples = read_samples(file)
    model, _ = scripted(*ANSWERS)
    first = asyncio.run(evaluate(model, samples, kept=kept))
    model, engine = scripted("unasked")
    assert asyncio.run(evaluate(model, samples, kept=kept)) == first and engine.prompts == []
    model, engine = scripted("asked")
    asyncio.run(evaluate(model, samples, Setting(held=False), kept=kept))
    assert len(engine.prompts) == 3, "another setting is another question; the same prompt is one"


def test_more_tools_are_offered_of_a_pool(tmp_path: Path, minicpm: Run, script: Script, file: Path) -> None:
    more = tmp_path / "t.json"
    more.write_text(json.dumps([tool(f"s{i}__t{i}", f"Thing {i}")["function"] for i in range(40)]))
    assert len(read_pool(more)) == 40 and read_pool(more)[0]["type"] == "function"
    script.context, script.answers = 1 << 15, list(ANSWERS)
    output = tmp_path / "o.json"
    words = ("--offer=30", f"--pool={more}", f"--output={output}", "--max-tokens=200")
    assert minicpm("mcp", "eval", str(file), *words).code == 0
    assert json.loads(output.read_text())["offer"] == 30
    more.write_text('{"a": 1}')
    wrong = minicpm("mcp", "eval", str(file), *words)
    assert wrong.code == 2 and "is no list of tools" in wrong.err


@pytest.mark.parametrize(
    "value", [7, {}, {"calls": [["f"]], "refused": ""}, {"calls": [["f", 5]], "refused": ""}]
)
def test_kept_calls_that_are_none_are_refused(tmp_path: Path, file: Path, value: Any) -> None:
    model, _ = scripted(*ANSWERS)
    kept = Kept(tmp_path / "k", {})
    asyncio.run(evaluate(model, read_samples(file)[:1], kept=kept))
    (piece,) = [one for one in (tmp_path / "k").iterdir() if one.name != "about.json"]
    piece.write_text(json.dumps({**json.loads(piece.read_text()), "value": value}))
    with pytest.raises(ConfigError, match=f"remove {piece} to have that piece made anew"):
        asyncio.run(evaluate(model, read_samples(file)[:1], kept=kept))


NESTED: dict[str, Any] = {}
for _ in range(300):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    "change",
    [
        {"marks": [["f", None, ""]]},
        {"marks": 7},
        {"marks": [[["f", NESTED], ["f", NESTED], ""]]},
        {"marks": [[["f", {}], None]]},
        {"wrong": "all"},
        {"made": "2"},
        {"refused": None},
        {"odd": 1},
    ],
    ids=str,
)
def test_a_kept_task_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    mark = [["sums__add", {"a": 1}], ["sums__add", {"a": 1}], ""]
    one = {"marks": [mark, [mark[0], None, "too long"]], "wrong": [], "ended": "answered", "answer": "5"}
    one |= {"made": 1, "unfit": 0, "seconds": 0.5, "refused": ""}
    kept = Kept(tmp_path, {})
    kept.put(one, "task", True)
    assert kept.get(_outcome, "task", True) == one
    less = {key: value for key, value in one.items() if key != "refused"}
    for number, odd in enumerate(({**one, **change}, less)):
        kept.put(odd, "task", number)
        with pytest.raises(ConfigError, match="to have that piece made anew"):
            kept.get(_outcome, "task", number)


def test_time_that_is_up_leaves_the_rest(tmp_path: Path, file: Path) -> None:
    model, engine = scripted(*ANSWERS)
    assert asyncio.run(evaluate(model, read_samples(file), until=0.0)) == [] and engine.prompts == []


def test_as_many_tools_fit_as_are_sure_to(file: Path) -> None:
    model, _ = scripted("x", context=1 << 16)
    samples = read_samples(file)
    longest = max(len(model.llm.chat_ids(one.messages, tools=[ADD])) for one in samples)
    assert fitting(model.llm, samples, 1 << 15) == 2
    both = len(model.llm.chat_ids(samples[1].messages, tools=[ADD, NOW]))
    assert fitting(model.llm, samples, longest + 200) == 1 < both
    with pytest.raises(ConfigError, match="no tool is sure to fit"):
        fitting(model.llm, samples, longest)


def test_a_sweep_is_a_line_for_each_way_and_goes_on(
    tmp_path: Path, minicpm: Run, script: Script, file: Path
) -> None:
    script.context = 1 << 14
    output = tmp_path / "scores.json"
    words = (
        "mcp",
        "eval",
        str(file),
        "--sweep",
        "--offer=1,2",
        f"--keep={tmp_path / 'k'}",
        "--max-tokens=200",
    )
    script.answers = [*ANSWERS] * 8
    done = minicpm(*words, f"--output={output}")
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line[:1].isdigit()]
    assert [(line.split()[0], "search" in line, "held" in line) for line in rows] == [
        (str(n), search, held)
        for n in (1, 2)
        for search, held in ((False, True), (False, False), (True, True), (True, False))
    ]
    assert len(json.loads(output.read_text())["settings"]) == 8
    again = minicpm(*words)
    assert again.out == done.out and len(script.calls) == len({*map(id, script.calls)})


def test_out_of_time_the_command_says_what_is_not_done(minicpm: Run, script: Script, file: Path) -> None:
    done = minicpm("mcp", "eval", str(file), "--minutes=1e-9")
    assert done.code == 0 and "time is up: 1 of 1 settings are left; with --keep" in done.err
    assert minicpm("mcp", "eval", str(file), "--minutes=0").code == 2


def test_what_could_not_be_asked_is_told_and_in_no_share(
    tmp_path: Path, minicpm: Run, script: Script, file: Path
) -> None:
    """As published samples are, one of them too long: the others are asked, and it is not tried again."""
    script.context, script.answers = 1 << 12, list(ANSWERS)
    with file.open("a") as more:
        more.write(json.dumps(talk(("sums__add", {"a": 1, "b": 2}), task="Add. " * 10_000)) + "\n")
    output = tmp_path / "o.json"
    words = ("mcp", "eval", str(file), f"--keep={tmp_path / 'k'}", f"--output={output}", "--max-tokens=200")
    done = minicpm(*words)
    assert done.code == 0 and "note: 1 of 5 calls could not be asked for" in done.err, done.err
    told = json.loads(output.read_text())
    assert told["scores"]["all"]["calls"] == 4 and told["calls"][4]["refused"]
    assert minicpm(*words).out == done.out
    other = minicpm(*words[:4], "--max-tokens=201")
    assert other.code == 2 and "was begun with sampling" in other.err


def test_an_endpoint_holds_no_calls(minicpm: Run, script: Script, file: Path) -> None:
    refused = minicpm("mcp", "eval", str(file), "--held", "--endpoint=http://127.0.0.1:9/v1")
    assert refused.code == 2 and "--held is for models that are loaded here" in refused.err


@pytest.mark.parametrize(
    "word",
    [
        *("--top-k=3", "--min-p=0.1", "--ignore-eos", "--stop-token-id=3", "--hide-special", "--regex=a"),
        *("--attention=dense", "--threads=1", "--ignore-field=x", "--context=9", "--weights=int8"),
    ],
)
def test_what_an_api_does_not_have_is_refused_by_name(
    minicpm: Run, script: Script, file: Path, word: str
) -> None:
    done = minicpm("mcp", "eval", str(file), "--endpoint=http://127.0.0.1:9/v1", word)
    assert done.code == 2 and word.partition("=")[0] in done.err and "says nothing to --endpoint" in done.err


def test_what_an_api_has_is_sent() -> None:
    sampling = SamplingFlags(top_p=0.5, seed=3, stop=["x", "y"], logit_bias=["7=-3"], max_tokens=9)
    asked = AskedModel(model="m", endpoint="http://h/v1", engine=EngineFlags(), sampling=sampling)
    model = asked.load()
    assert isinstance(model, Endpoint) and model.settings == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["x", "y"],
        "logit_bias": {"7": -3.0},
    }
    assert asked.about(model)["endpoint"] == "http://h/v1"
    with pytest.raises(ConfigError, match="-100 to 100"):
        AskedModel(
            model="m", endpoint="u", engine=EngineFlags(), sampling=SamplingFlags(logit_bias=["7=-inf"])
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--offer=5,x",), "'x' is no number"),
        (("--offer=5,20",), "give --sweep, or one"),
        (("--sweep", "--free"), "--sweep tries both"),
        (("--sweep", "--endpoint=http://127.0.0.1:1/v1"), "fit needs the model here"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    minicpm: Run, script: Script, file: Path, words: tuple[str, ...], told: str
) -> None:
    done = minicpm("mcp", "eval", str(file), *words)
    assert done.code == 2 and told in done.err
