"""`minicpm4 chat`: turns, commands, and what an interruption leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from minicpm4.errors import RequestError
from tests.cli.conftest import Result, Script

Run = Callable[..., Result]


def contents(script: Script, call: int) -> list[str]:
    return [message["content"] for message in script.calls[call].prompt]


def test_every_turn_sees_those_before(minicpm: Run, script: Script) -> None:
    script.answers = [["one"], ["two"]]
    result = minicpm("chat", "--system", "S", stdin="first\n\nsecond\n")
    assert result.code == 0
    assert result.out == "one\ntwo\n"
    assert contents(script, 1) == ["S", "first", "one", "second"]
    assert len(script.loads) == 1


def test_a_backslash_continues_a_message(minicpm: Run, script: Script) -> None:
    minicpm("chat", stdin="\ufefffirst\\\nsecond\n")  # the byte-order mark of a file is no text
    assert contents(script, 0) == ["first\nsecond"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/reset", ["S", "again"]),
        ("/system T", ["T", "again"]),
        ("/system none", ["again"]),
        ('/system ""', ["again"]),
        ("/system", ["S", "first", "one", "again"]),
        ("/think off", ["S", "first", "one", "again"]),
        ("/help", ["S", "first", "one", "again"]),
    ],
)
def test_commands_change_the_conversation(
    minicpm: Run, script: Script, command: str, expected: list[str]
) -> None:
    script.answers = [["one"], ["two"]]
    assert minicpm("chat", "--system", "S", stdin=f"first\n{command}\nagain\n").code == 0
    assert contents(script, 1) == expected
    assert script.calls[1].think is (False if "think" in command else None)


def test_help_lists_every_command(minicpm: Run, script: Script) -> None:
    from minicpm4.cli.chat_commands import ACTIONS

    result = minicpm("chat", stdin="/help\n")
    assert all(name in result.err for name in ACTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "there is no command /rest. did you mean '/reset'?"),
        ("/think perhaps", "use on, off or auto"),
        ("/save", "/save needs a file name"),
        ("/forget", "/forget : there are 0 questions"),
        ("/forget 1", "there are 0 questions"),
        ("/forget 99999999999999999999", "there are 0 questions"),
        ("/forget 000000001" + 4400 * "0", "there are 0 questions"),
        ("/save /nowhere/at/all", "cannot write /nowhere/at/all"),
        ("/save a\0b", "cannot write ab: embedded null byte"),
        ("/save " + 300 * "n", "File name too long"),
        ("/save ~nobody-of-this-name/x", "home directory"),
        ("/stats", "there is no complete answer yet"),
        ("/reset now", "/reset takes nothing behind it, and has now. leave that out"),
        ("/help set", "/help takes nothing behind it"),
        ("/tools x", "/tools takes nothing behind it"),
        ("/stats x", "/stats takes nothing behind it"),
        ("/exit now", "/exit takes nothing behind it"),
        ("/quit now", "/quit takes nothing behind it"),
    ],
)
def test_wrong_commands_are_explained(minicpm: Run, script: Script, line: str, message: str) -> None:
    result = minicpm("chat", stdin=f"{line}\n")
    assert result.code == 2
    assert message in result.err


def test_exit_leaves_at_once(minicpm: Run, script: Script) -> None:
    assert minicpm("chat", stdin="/exit\nmore\n").code == 0
    assert script.calls == []


def test_save_writes_the_conversation(minicpm: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    minicpm("chat", stdin=f"first\n/save {file}\n")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [m["role"] for m in saved] == ["user", "assistant"]


def test_ctrl_c_stops_the_answer_and_keeps_the_session(minicpm: Run, script: Script) -> None:
    script.answers = [["half an ", KeyboardInterrupt(), ""], ["two"]]
    result = minicpm("chat", stdin="first\nsecond\n")
    assert result.code == 0
    assert contents(script, 1) == ["first", "half an ", "second"]
    assert "[stopped]" in result.err


def test_a_model_without_template_is_refused(minicpm: Run, script: Script) -> None:
    script.template = False
    result = minicpm("chat", stdin="x\n")
    assert result.code == 2
    assert "has no chat template. use: minicpm4 generate --raw" in result.err


def test_a_refused_turn_ends_a_script(minicpm: Run, script: Script) -> None:
    script.answers = [[RequestError("too long"), ""]]
    result = minicpm("chat", stdin="first\nsecond\n")
    assert (result.code, len(script.calls)) == (2, 1)


def grown(script: Script, *lines: str) -> str:
    """Three exchanges of about 100 tokens in a context of 400, then ``lines``."""
    script.context, script.answers = 400, [["a" * 60], ["b" * 60], ["c" * 60], ["ok"]]
    return "".join(f"{line}\n" for line in ("1" * 40, "2" * 40, "3" * 40, *lines))


def test_what_does_not_fit_is_not_sent_and_says_what_would_make_room(minicpm: Run, script: Script) -> None:
    result = minicpm("chat", stdin=grown(script, "4" * 60))
    assert (result.code, len(script.calls)) == (2, 3)
    assert (
        "with this message the conversation has 443 tokens, the context is 400; it was not sent. "
        "/reset forgets all of it, /forget 1 the oldest 1 of 3 questions; /set drop_oldest on does so"
        in result.err
    )


@pytest.mark.parametrize("number", ["0000000010", "1" + 4400 * "0", "-1", "²"])
def test_no_more_is_forgotten_than_there_is(minicpm: Run, script: Script, number: str) -> None:
    result = minicpm("chat", stdin=grown(script, f"/forget {number}", "5"))
    assert f"/forget {number}"[:40] in result.err and "say how many, 1 to 3" in result.err
    assert "left out" not in result.err and (result.code, len(script.calls)) == (2, 3)


def test_what_is_left_out_is_told_and_the_session_goes_on(minicpm: Run, script: Script) -> None:
    result = minicpm("chat", "--system", "S", stdin=grown(script, "/forget 2", "4" * 60))
    assert result.code == 0 and result.out.endswith("ok\n")
    assert "left out 2 of 3 questions with their answers, " in result.err and " tokens" in result.err
    assert contents(script, 3) == ["S", "3" * 40, "c" * 60, "4" * 60]


def test_at_a_terminal_the_session_goes_on_after_a_refusal(minicpm: Run, script: Script) -> None:
    result = minicpm("chat", stdin=grown(script, "4" * 60, "/forget 1", "5"), terminal=True)
    assert result.code == 0 and "it was not sent" in result.err and "ok\n" in result.out
    assert contents(script, 3) == ["2" * 40, "b" * 60, "3" * 40, "c" * 60, "5"]


def test_a_message_too_long_alone_says_so(minicpm: Run, script: Script) -> None:
    script.context = 100
    result = minicpm("chat", stdin="x" * 200 + "\n")
    assert result.code == 2 and "it has 220 even alone: shorten it" in result.err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (
            ("--max-tokens", "20"),
            "[cut after 20 tokens: --max-tokens allows no more; /set max_tokens N allows",
        ),
        (("--max-tokens", "200"), "[cut after 78 tokens: conversation and answer fill the context of 100; "),
    ],
)
def test_a_cut_answer_says_what_cut_it(minicpm: Run, script: Script, args: Any, why: str) -> None:
    script.context, script.answers = 100, ["z" * 300]
    result = minicpm("chat", *args, stdin="hi\n")
    assert why in result.err


def test_three_quotes_hold_a_message_together(minicpm: Run, script: Script) -> None:
    minicpm("chat", stdin='"""\n/reset\n\nx\n"""\n"""open\nto the end\n')
    assert contents(script, 0) == ["/reset\n\nx"]
    assert contents(script, 1)[-1] == "open\nto the end"


def test_ctrl_c_before_anything_is_written_takes_the_turn_back(minicpm: Run, script: Script) -> None:
    script.answers = [[KeyboardInterrupt(), ""], ["two"]]
    result = minicpm("chat", stdin="first\nsecond\n")
    assert contents(script, 1) == ["second"]
    assert "[taken back: nothing was answered yet]" in result.err


def test_an_empty_answer_is_remarked(minicpm: Run, script: Script) -> None:
    script.answers = [""]
    assert "[the answer is empty]" in minicpm("chat", stdin="hi\n").err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/reset", "the conversation is forgotten, 1 question; the system message stays"),
        ("/system T", "the system message is set; the conversation is forgotten, 1 question"),
        ("/system none", "there is no system message; the conversation is forgotten, 1 question"),
        ("/system", "the system message: S\n"),
        ("/think on", "thinking: on; the chat template of"),
        ("/set temperature 0.5", "temperature 0.5\n"),
        ("/set --max-tokens none", "max_tokens none\n"),
        ("/set stop END", "stop END\n"),
        ("/set ignore_eos on", "ignore_eos on\n"),
        ("/set drop_oldest on", "drop_oldest on\n"),
        ("/set", "top_p 0.7\n"),
    ],
)
def test_settings_confirm_themselves(minicpm: Run, script: Script, line: str, said: str) -> None:
    assert said in minicpm("chat", "--system", "S", stdin=f"hi\n{line}\n").err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperatur 1", "there is no setting temperatur. did you mean 'temperature'?"),
        ("/set temperature hot", "/set temperature: hot does not fit. give a number from 0 to 100 (0: the "),
        ("/set temperature 0,5", "0,5 does not fit"),
        ("/set temperature 1 now", "1 now does not fit"),
        ("/set top_k x", "x does not fit. give a whole number from 1; none turns it off"),
        ("/set min_tokens none", "none does not fit. give a whole number from 0"),
        ("/set ignore_eos maybe", "maybe does not fit. give on or off"),
        ("/set ignore_eos none", "none does not fit. give on or off"),
        ("/set top_p 3", "top_p = 3.0 is outside 0 (excluded) to 1"),
        ("/set drop_oldest 1", "use on or off"),
        ("/load", "/load needs a file name"),
        ("/load /nowhere", "/nowhere"),
    ],
)
def test_wrong_settings_are_explained(minicpm: Run, script: Script, line: str, message: str) -> None:
    result = minicpm("chat", stdin=f"{line}\n")
    assert result.code == 2 and message in result.err


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        *(("temperature", 101), ("top_p", 0), ("min_p", 2), ("repetition_penalty", 0)),
        *(("presence_penalty", 3), ("frequency_penalty", -3)),
    ],
)
def test_what_fits_is_told_as_what_is_refused(
    minicpm: Run, script: Script, name: str, outside: float
) -> None:
    refused = minicpm("chat", stdin=f"/set {name} {outside}\n").err
    allowed = re.search(r" is outside (.+? to \d+)", refused)
    assert allowed is not None
    assert f"give a number from {allowed[1]}" in minicpm("chat", stdin=f"/set {name} x\n").err


def test_settings_hold_for_the_next_answer(minicpm: Run, script: Script) -> None:
    minicpm("chat", stdin="/set temperature 0\n/set seed 7\nhi\n")
    params = script.calls[0].params
    assert (params.temperature, params.seed, params.top_p) == (0.0, 7, 0.7)


@pytest.mark.parametrize("word", ["exit", "Quit ", "help", "exit()"])
def test_a_command_without_its_slash_is_told_at_a_terminal(minicpm: Run, script: Script, word: str) -> None:
    result = minicpm("chat", stdin=f"{word}\n {word}\n", terminal=True)
    told = "/help lists the commands" if word == "help" else "/exit leaves"
    assert f"{told}; a space before {word.strip()} sends it to the model\n" in result.err
    assert [call.prompt[-1]["content"] for call in script.calls] == [f" {word}"]
    script.calls.clear()
    minicpm("chat", stdin=f"{word}\n")  # lines of a pipe are messages
    assert contents(script, 0) == [word]


def test_every_setting_of_a_line_is_one_of_sampling() -> None:
    from minicpm4 import SamplingParams
    from minicpm4.cli.chat_commands import SETTINGS

    assert set(SETTINGS) <= {field.name for field in fields(SamplingParams)}


def test_the_oldest_are_dropped_only_when_told_to(minicpm: Run, script: Script) -> None:
    result = minicpm("chat", stdin=grown(script, "/set drop_oldest on", "4" * 60))
    assert result.code == 0
    assert "[left out 2 of 3 questions with their answers, " in result.err  # a quarter is the answer's
    assert contents(script, 3) == ["3" * 40, "c" * 60, "4" * 60]
    result = minicpm("chat", stdin=f"hi\n/set drop_oldest on\n{'x' * 500}\n")
    assert result.code == 2 and "even alone, the context is 400; it was not sent" in result.err


def test_a_saved_conversation_is_loaded(minicpm: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    minicpm("chat", "--system", "S", stdin=f"first\n/save {file}\n")
    result = minicpm("chat", stdin=f"/load {file}\nsecond\n/reset\nthird\n")
    assert "loaded 3 messages" in result.err
    assert contents(script, 1) == ["S", "first", "Paris.", "second"]
    assert contents(script, 2) == ["S", "third"]


@pytest.mark.parametrize("text", ["{", "[1]", "[]", '"x"', '[{"role": "user"}]', "null", '{"messages": 3}'])
def test_what_is_no_conversation_is_not_loaded(
    minicpm: Run, script: Script, tmp_path: Path, text: str
) -> None:
    (tmp_path / "talk.json").write_text(text)
    result = minicpm("chat", stdin=f"/load {tmp_path / 'talk.json'}\n")
    assert result.code == 2 and "give a file that /save wrote" in result.err


def test_nothing_is_written_over_where_nobody_can_be_asked(
    minicpm: Run, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "talk.json").write_text("mine")
    result = minicpm("chat", stdin=f"first\n/save {tmp_path / 'talk.json'}\n")
    assert result.code == 2 and "is there already; nothing was saved" in result.err
    assert (tmp_path / "talk.json").read_text() == "mine"


def test_continue_goes_on_with_the_last_conversation_and_its_model(
    minicpm: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPM4_CHAT", str(tmp_path / "kept"))
    refused = minicpm("chat", "--continue", stdin="x\n")
    assert refused.code == 2 and "there is no conversation to go on with" in refused.err
    minicpm("chat", "-m", "other", stdin="first\n", terminal=True)
    result = minicpm("chat", "--continue", stdin="second\n")
    assert "going on after 1 question" in result.err
    assert script.loads[-1][0] == "other"
    assert contents(script, 1) == ["first", "Paris.", "second"]
    assert minicpm("chat", "--continue", "--system", "S").code == 2
    again = minicpm("chat", "--continue", stdin="third\n")
    assert contents(script, 2) == ["first", "Paris.", "third"], "of lines of a pipe nothing is kept"
    assert "going on after 1 question" in again.err


def test_nothing_is_kept_where_that_is_switched_off(
    minicpm: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICPM4_CHAT", "off")
    assert minicpm("chat", stdin="first\n", terminal=True).code == 0
    assert minicpm("chat", "--continue", stdin="x\n").code == 2


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (b"ab\x7fc\x1b[D\x1b[200~d\x1b[201~\x1bOA\x07", "acd"),
        (b"one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("\x7fé\xff".encode() + b"\xc3", "éÿ"),
    ],
)
def test_keys_pressed_ahead_are_text(keys: bytes, text: str) -> None:
    from minicpm4.cli.keyboard import typed_text

    assert typed_text(keys) == text
