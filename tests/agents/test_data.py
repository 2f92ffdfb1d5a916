"""Conversations to train on, converted from the layouts of others."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.data.layouts import converted
from minicpm4.agents.mcp.data.records import records
from minicpm4.agents.mcp.data.talks import Dropped, Talk, fault, write_set
from minicpm4.agents.mcp.data.types import schema_of
from minicpm4.errors import ConfigError
from minicpm4.text.call_messages import call_message, result_message
from tests.agents.test_evaluate import ADD
from tests.cli.conftest import Result, minicpm
from tests.growth import TIMES, is_linear

Run = Callable[..., Result]
__all__ = ["minicpm"]
XLAM = {
    "id": 1,
    "query": "Where can I find live giveaways of beta access, and 3 games?",
    "answers": json.dumps([{"name": "live_giveaways", "arguments": {"kind": "beta", "most": 3}}]),
    "tools": json.dumps(
        [
            {
                "name": "live_giveaways",
                "description": "Giveaways.",
                "parameters": {
                    "kind": {"description": "Which.", "type": "str", "default": "game"},
                    "most": {"description": "How many.", "type": "int, optional"},
                    "ids": {"type": "List[int]", "description": "", "default": ""},
                },
            }
        ]
    ),
}
GLAIVE = {
    "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if "
    'required -\n{"name": "rate", "description": "A rate.", "parameters": {"type": "object", "properties": '
    '{"from": {"type": "string"}, "to": {"type": "string"}}, "required": ["from", "to"]}}\n',
    "chat": "USER: What is a euro in yen?\n\n\nASSISTANT: <functioncall> "
    '{"name": "rate", "arguments": \'{"from": "EUR", "to": "JPY"}\'} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {"rate": 160}\n\n\nASSISTANT: A euro is 160 yen. <|endoftext|>\n\n\n',
}
APIS = [
    {
        "name": "search_for_songs",
        "description": "It's a search.",
        "parameters": {
            "type": "object",
            "properties": {"term": {"type": "string", "example_value": "x"}},
            "required": ["term"],
            "optional": [],
        },
    },
    {"name": "Finish", "description": "The end.", "parameters": {"type": "object", "properties": {}}},
]
FINISH = json.dumps({"return_type": "give_answer", "final_answer": "Two songs."})
TOOLBENCH = {
    "id": "Step 3: Songs by Cher",
    "conversations": [
        {"from": "system", "value": f"You are AutoGPT. You have access to the following APIs: {APIS!r}"},
        {"from": "user", "value": "\nFind songs by Cher.\nBegin!\n"},
        {
            "from": "assistant",
            "value": '\nThought: I search.\nAction: search_for_songs\nAction Input: {\n "term": "Cher"\n}',
        },
        {"from": "function", "value": '{"error": "", "response": "two"}'},
        {"from": "assistant", "value": f"\nThought: \nAction: Finish\nAction Input: {FINISH}"},
    ],
}


def convert(tmp_path: Path, layout: str, *given: Any) -> list[Talk | Dropped]:
    file = tmp_path / "set.json"
    file.write_text(json.dumps(list(given)))
    return list(converted(layout, [file]))


def only(found: Sequence[Talk | Dropped]) -> Talk:
    (one,) = found
    assert isinstance(one, Talk) and fault(one) is None, one
    return one


def test_xlam_is_read(tmp_path: Path) -> None:
    talk = only(convert(tmp_path, "xlam", XLAM))
    assert [*talk.calls()] == [("live_giveaways", {"kind": "beta", "most": 3})]
    schema = talk.tools[0]["function"]["parameters"]
    assert "required" not in schema and schema["properties"]["kind"]["type"] == "string"
    assert schema["properties"]["ids"] == {
        "type": "array",
        "items": {"type": "integer"},
        "description": "",
        "default": "",
    }


def test_glaive_is_read(tmp_path: Path) -> None:
    talk = only(convert(tmp_path, "glaive", GLAIVE))
    assert [one["role"] for one in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert [*talk.calls()] == [("rate", {"from": "EUR", "to": "JPY"})]
    assert talk.messages[2]["content"] == '{"rate": 160}'
    assert talk.messages[3]["content"] == "A euro is 160 yen."


def test_toolbench_is_read(tmp_path: Path) -> None:
    talk = only(convert(tmp_path, "toolbench", TOOLBENCH))
    assert talk.query == "Find songs by Cher." and talk.messages[1]["content"] == "I search."
    assert [one["function"]["name"] for one in talk.tools] == ["search_for_songs"]
    assert talk.messages[-1] == {"role": "assistant", "content": "Two songs."}


DEEP = "[" * 600 + "]" * 600


def dropped(layout: str, record: dict[str, Any], tmp_path: Path) -> str:
    (one,) = convert(tmp_path, layout, record)
    found = one if isinstance(one, Dropped) else fault(one)
    return "" if found is None else found.reason


@pytest.mark.parametrize(
    ("layout", "record", "reason"),
    [
        ("xlam", {"query": "x"}, "layout"),
        ("xlam", {**XLAM, "query": " "}, "no query"),
        ("xlam", {**XLAM, "answers": "[]"}, "no call"),
        ("xlam", {**XLAM, "tools": "[]"}, "no tools"),
        ("xlam", {**XLAM, "answers": '[{"name": "other", "arguments": {}}]'}, "unknown tool"),
        (
            "xlam",
            {**XLAM, "answers": '[{"name": "live_giveaways", "arguments": {"most": "x"}}]'},
            "arguments",
        ),
        ("xlam", {**XLAM, "tools": str(XLAM["tools"]).replace('"game"', "NaN")}, "not JSON"),
        ("xlam", {**XLAM, "query": "hid\u200bden"}, "hidden"),
        ("glaive", {**GLAIVE, "chat": "Hello."}, "layout"),
        ("glaive", {**GLAIVE, "chat": "USER: Hello.\n\n\nFUNCTION RESPONSE: {}"}, "layout"),
        ("glaive", {**GLAIVE, "system": "SYSTEM: No functions."}, "no tools"),
        ("toolbench", {"conversations": TOOLBENCH["conversations"][:-1]}, "not answered"),  # type: ignore[index]
        (
            "toolbench",
            json.loads(json.dumps(TOOLBENCH).replace("give_answer", "give_up_and_restart")),
            "gave up",
        ),
        ("toolbench", json.loads(json.dumps(TOOLBENCH).replace("Action Input", "Input")), "layout"),
        ("xlam", {**XLAM, "answers": '[{"name": ["x"], "arguments": {}}]'}, "layout"),
        ("xlam", {**XLAM, "answers": "[" * 100_000}, "layout"),
        (
            "xlam",
            {**XLAM, "answers": DEEP.join(('[{"name": "live_giveaways", "arguments": {"kind": ', "}}]"))},
            "bounds",
        ),
        (
            "xlam",
            {
                **XLAM,
                "tools": DEEP.join(
                    ('[{"name": "f", "parameters": {"properties": {"x": {"default": ', "}}}}]")
                ),
            },
            "bounds",
        ),
        (
            "glaive",
            {**GLAIVE, "chat": GLAIVE["chat"].replace('"name": "rate"', '"name": ["rate"]')},
            "layout",
        ),
    ],
)
def test_what_is_not_kept_has_a_reason(
    layout: str, record: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert dropped(layout, record, tmp_path) == reason


LONG = 200_000
SAID = {"from": "assistant", "value": "Action:" * LONG}
TYPED = [{"name": "f", "parameters": {"x": {"type": "a" + " " * LONG + "b"}}}]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("layout", "record", "reason"),
    [
        ("glaive", {**GLAIVE, "chat": "\n" * LONG}, "layout"),
        ("glaive", {**GLAIVE, "system": "{}" * LONG}, "layout"),
        ("toolbench", {"conversations": [*TOOLBENCH["conversations"][:2], SAID]}, "layout"),  # type: ignore[index]
        ("xlam", {**XLAM, "tools": json.dumps(TYPED)}, "unknown tool"),
    ],
)
def test_a_long_record_takes_time_in_its_length(
    layout: str, record: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert dropped(layout, record, tmp_path) == reason


def test_records_are_not_copied_for_each_of_them(tmp_path: Path) -> None:
    def made(count: int) -> Path:
        file = tmp_path / f"{count}.json"
        file.write_text("[" + ",".join(["{}"] * count) + "]")
        return file

    assert sum(1 for _ in records([made(LONG)])) == LONG
    assert is_linear(made, lambda file: deque(records([file]), 0), LONG // TIMES)


def test_results_follow_their_calls() -> None:
    call, user = call_message([("c", "sums__add", {"a": 1, "b": 2})]), {"role": "user", "content": "1 + 2?"}
    result = result_message("c", "sums__add", "3")
    for messages, fine in (([user, call, result], True), ([user, result, call], False)):
        assert (fault(Talk(messages=messages, tools=[ADD])) is None) is fine
    found = fault(Talk(messages=[user, call, user], tools=[ADD]))
    assert found is not None and found.reason == "order"


@pytest.mark.parametrize(
    ("told", "schema"),
    [
        ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        ("Dict[str, int], optional", {"type": "object"}),
        ("Optional[float]", {"type": "number"}),
        ("Tuple[str, int]", {"type": "array"}),
        ("Callable[[float], float]", {}),
    ],
)
def test_types_of_python_are_schemas(told: str, schema: dict[str, Any]) -> None:
    assert schema_of({"x": {"type": told}})["properties"]["x"] == schema


def test_lists_and_lines_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minicpm4.agents.mcp.data.records.CHUNK", 7)
    every = [{"a": i, "b": "x" * i, "c": [1.5, {}]} for i in range(9)]
    file = tmp_path / "x.json"
    for text in (json.dumps(every, indent=1), "\n".join(map(json.dumps, every)), json.dumps(every) + " \n"):
        file.write_text(text)
        assert [one for _, one in records([file])] == every
    for text, numbers in (("[{}, 1.5e+10, -7]", [{}, 1.5e10, -7]), ("7\n{}\n12.25", [7, {}, 12.25])):
        file.write_text(text)
        assert [one for _, one in records([file])] == numbers
    broken = (
        ('[{"a": 1}, {"a"', "x.json is not JSON: Exp"),
        ("[{}", "ends within its list"),
        ("", "has no record"),
        ("[]", "has no record"),
    )
    for text, told in broken:
        file.write_text(text)
        with pytest.raises(ConfigError, match=told):
            list(records([file]))


def test_a_record_that_is_wrong_is_told_in_words(tmp_path: Path) -> None:
    found = convert(tmp_path, "xlam", XLAM, 7, "x", None, {"query": "x"}, {**XLAM, "answers": "[7]"})
    whys = [one.why for one in found if isinstance(one, Dropped)]
    table = "a part of it is not as the layout has it: 'int' object is not subscriptable"
    assert whys == ["it is no table"] * 3 + ["it lacks 'answers'", table]
    assert found[1].where.endswith("set.json, record 2")


def test_a_refused_conversion_leaves_no_folder(tmp_path: Path, minicpm: Run) -> None:
    file = tmp_path / "x.json"
    for text, told in (("", "has no record"), (json.dumps(XLAM) + "\nno", "is not JSON")):
        file.write_text(text)
        done = minicpm("mcp", "data", "xlam", str(file), f"--output={tmp_path / 'a' / 'b'}")
        assert done.code == 2 and told in done.err and not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    assert minicpm("mcp", "data", "xlam", str(file), f"--output={tmp_path / 'there'}").code == 2
    assert (tmp_path / "there").is_dir()


def test_a_set_is_written_with_its_counts(tmp_path: Path) -> None:
    bad = {**XLAM, "answers": "[]"}
    counts = write_set(tmp_path / "out", convert(tmp_path, "xlam", XLAM, XLAM, bad))
    assert (counts.kept, counts.calls, counts.dropped) == (1, 1, {"no call": 1, "twice": 1})
    lines = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(one)["reason"] for one in lines] == ["twice", "no call"]
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["kept"] == 1
