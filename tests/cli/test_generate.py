"""`minicpm4 generate`: where the prompt comes from, and what is printed where."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minicpm4
from minicpm4.cli.generate import read_prompt
from minicpm4.errors import RequestError
from tests.cli.conftest import Result, Script

Run = Callable[..., Result]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        (["--prompt", "Hi"], "", "Hi"),
        (["Hi"], "", "Hi"),
        (["--prompt", "Why?"], "piped in\n", "piped in\n\nWhy?"),
        (["Why?"], "piped in\n", "piped in\n\nWhy?"),
        (
            ["-f", "FILE", "-f", "-", "-f", "FILE", "Why?"],
            "x",
            "a file\nof two lines\n\nx\n\na file\nof two lines\n\nWhy?",
        ),
        ([], "from a pipe\n", "from a pipe"),
        (["--prompt-file", "-"], "text\n", "text"),
        (["--prompt-file", "-", "--prompt", "Why?"], "text\n", "text\n\nWhy?"),
        (["--prompt-file", "FILE"], "ignored", "a file\nof two lines"),
        (["--prompt-file", "FILE", "--prompt", "Why?"], "", "a file\nof two lines\n\nWhy?"),
    ],
)
def test_the_prompt_is_put_together(
    minicpm: Run, script: Script, tmp_path: Path, args: list[str], stdin: str, prompt: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a file\nof two lines\n", encoding="utf-8")
    args = [str(file) if a == "FILE" else a for a in args]
    assert minicpm("generate", *args, stdin=stdin).code == 0
    assert script.calls[0].prompt == [{"role": "user", "content": prompt}]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the prompt is empty"),
        (["--prompt", "  "], "the prompt is empty"),
        (["--prompt-file", "absent.txt"], "cannot read absent.txt: No such file"),
        (["--prompt-file", "."], "cannot read ."),
        (["--prompt", "x", "--raw", "--system", "y"], "--system, --think and --tools need a chat template"),
        (["x", "--prompt", "y"], "the prompt is given twice"),
        (["x", "--logprobs", "3"], "--logprobs is part of --json"),
        (["x", "--samples", "0"], "n = 0 is outside 1 to 256"),
        (["x", "--logit-bias", "a=1"], "--logit-bias has 'a=1'. write ID=BIAS"),
        (["-f", "-", "-f", "-"], "--prompt-file - is given twice"),
    ],
)
def test_wrong_prompts_are_refused(minicpm: Run, script: Script, args: list[str], message: str) -> None:
    result = minicpm("generate", *args)
    assert result.code == 2
    assert message in result.err


def test_a_file_that_is_no_text_is_refused(minicpm: Run, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "data.bin"
    file.write_bytes(b"ab\xff")
    result = minicpm("generate", "--prompt-file", str(file))
    assert result.code == 2
    assert "is not UTF-8: invalid start byte at byte 2" in result.err


@pytest.mark.parametrize(
    ("args", "template", "kind"),
    [([], True, "chat"), ([], False, "raw"), (["--raw"], True, "raw"), (["--chat"], True, "chat")],
)
def test_chat_template_or_raw(
    minicpm: Run, script: Script, args: list[str], template: bool, kind: str
) -> None:
    script.template = template
    assert minicpm("generate", "--prompt", "x", *args).code == 0
    assert script.calls[0].kind == kind


def test_system_message_and_thinking(minicpm: Run, script: Script) -> None:
    minicpm("generate", "--prompt", "x", "--system", "Be brief.", "--no-think")
    assert script.calls[0].prompt[0] == {"role": "system", "content": "Be brief."}
    assert script.calls[0].think is False


def test_piped_text_is_plain(minicpm: Run, script: Script) -> None:
    script.answers = [["[bold]Par", "is[/bold] :smile:"]]
    result = minicpm("generate", "--prompt", "x")
    assert result.out == "[bold]Paris[/bold] :smile:\n"
    assert result.err == ""


def test_stats_go_to_standard_error(minicpm: Run, script: Script) -> None:
    result = minicpm("generate", "--prompt", "x", "--stats")
    assert result.out == "Paris.\n"
    said = "attention: dense; sampling: temperature 0.7, top_p 0.7\n"  # what was chosen
    assert result.err.startswith(said)
    assert (
        "read 4,000 tokens (213 of the prompt were known): 2,000 tokens/s; wrote 11: 20.0 tokens/s\n"
        in result.err
    )
    assert "attention sparse, 25% of the blocks read; most memory used so far 315 MB" in result.err


def test_json_is_one_object(minicpm: Run, script: Script) -> None:
    script.answers = [['"\x1b]0;', "é\n"]]
    result = minicpm("generate", "--prompt", "x", "--json", "--stats")
    answer = json.loads(result.out)
    assert answer["text"] == '"\x1b]0;é\n'
    assert answer["finish_reason"] == "stop"
    assert answer["model"] == "smollm2-135m-instruct"
    assert answer["metrics"]["prompt_tokens"] == 4213
    assert result.out.count("\n") == 1 and result.err == ""


def test_ctrl_c_exits_130(minicpm: Run, script: Script) -> None:
    script.answers = [["Par", KeyboardInterrupt(), "is"]]
    result = minicpm("generate", "--prompt", "x")
    assert result.code == 130
    assert result.out.startswith("Par") and "Traceback" not in result.err


def test_the_checkpoint_suggests_and_options_decide(
    minicpm: Run, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minicpm4.LLM, "sampling_defaults", {"temperature": 0.8, "top_p": 0.9})
    assert minicpm("generate", "-p", "x", "-t", "0.1").code == 0
    params = script.calls[-1].params
    assert (params.temperature, params.top_p) == (0.1, 0.9)


@pytest.mark.parametrize(
    ("args", "measured"),
    [((), True), (("--no-calibrate",), False), (("--json",), True), (("--no-stats",), True)],
)
def test_a_long_prompt_may_be_measured_for_first(
    minicpm: Run, script: Script, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], measured: bool
) -> None:
    asked: list[Any] = []

    def calibrate(found: Any, prompt: str, progress: Any) -> str:
        assert script.loads == []
        asked.append((found.source.name, found.asked.kv, len(prompt)))
        return "calibrated"

    def plan(source: Any, text: Any, options: Any) -> Any:
        return SimpleNamespace(source=source, settings="planned anew")

    monkeypatch.setattr("minicpm4.evals.first_use.calibrate_first", calibrate)
    monkeypatch.setattr("minicpm4.engine.load.plan_model", plan)
    minicpm("generate", "--prompt", "short")
    assert asked == []
    script.loads.clear()
    result = minicpm("generate", "--kv", "int8", *args, stdin="long " * 2000)
    assert asked == ([("smollm2-135m-instruct", "int8", 10000)] if measured else [])
    assert ("calibrated" in result.err) == (args == ())
    assert (script.loads[0][1] == "planned anew") == measured


def test_files_that_are_no_text_and_names_taken_for_questions_are_remarked_on(
    minicpm: Run, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7 \xe2\xe3")
    (tmp_path / "empty.txt").write_text(" \n")
    for file, told in (("scan.pdf", "of a PDF"), (".", "each with an -f"), ("gone.txt", "check the path")):
        result = minicpm("generate", "-f", str(tmp_path / file), "what is it?")
        assert result.code == 2 and told in result.err, result.err
    script.answers = [["a"], ["b"]]
    assert "empty.txt is empty" in minicpm("generate", "-f", str(tmp_path / "empty.txt"), "what?").err
    assert "-f reads it" in minicpm("generate", str(tmp_path / "empty.txt")).err


def test_an_answer_that_is_cut_says_what_cut_it(minicpm: Run, script: Script) -> None:
    script.answers = [["a", "b", "c", "d"]]
    result = minicpm("generate", "--prompt", "x", "--max-tokens", "3")  # no terminal: it may be a pipe
    assert "[cut after 3 tokens: --max-tokens allows no more]" in result.err
    script.answers = [["a", "b", "c", "d"]]
    assert "[cut" not in minicpm("generate", "--prompt", "x", "--max-tokens", "3", "--no-stats").err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("piped", [False, True])
def test_a_prompt_is_read_alike_however_an_editor_saved_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, piped: bool
) -> None:
    data = "One é.\r\nTwo.\rThree.\n".encode(encoding)
    (tmp_path / "a.txt").write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
    assert read_prompt(None, ["-" if piped else str(tmp_path / "a.txt")]) == "One é.\nTwo.\nThree."


@pytest.mark.parametrize("piped", [False, True])
def test_a_prompt_that_does_not_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9!")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9!")))
    name = "-" if piped else str(tmp_path / "a.txt")
    with pytest.raises(RequestError, match="is not UTF-8: invalid continuation byte at byte 3"):
        read_prompt(None, [name])


def test_what_cannot_be_had_is_said(minicpm: Run, script: Script, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([TOOL]))
    result = minicpm("generate", "x", "--think", "--max-tokens", "9999", "--tools", str(tools), "--json")
    assert result.code == 0
    assert (
        "note: --think, --no-think: the chat template of smollm2-135m-instruct has no such switch"
        in result.err
    )
    assert "shows no tools: describe them in --system" in result.err
    assert "note: --max-tokens 9,999: after this prompt the context has room for " in result.err
    assert json.loads(result.out)["tool_calls"] == []
    assert "note:" not in minicpm("generate", "x", "--max-tokens", "99").err


def test_calls_of_tools_are_told_apart(minicpm: Run, script: Script, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(
        json.dumps([{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}])
    )
    script.answers = ['<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>']
    result = json.loads(minicpm("generate", "x", "--tools", str(tools), "--json").out)
    assert result["tool_calls"] == [{"name": "now", "arguments": {}}]
    tools.write_text("[]")
    assert "holds no tools" in minicpm("generate", "x", "--tools", str(tools)).err


def test_several_answers_are_printed_one_after_another(minicpm: Run, script: Script) -> None:
    script.answers = ["Paris"]
    assert minicpm("generate", "x", "--samples", "2").out == "--- 1 of 2 ---\nParis\n--- 2 of 2 ---\nParis\n"
    script.answers = ["Rome"]
    result = json.loads(minicpm("generate", "x", "--samples", "2", "--logprobs", "1", "--json").out)
    assert [one["text"] for one in result["samples"]] == ["Rome", "Rome"]
    assert len(result["samples"][1]["logprobs"]) == len("Rome") + 1


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_wrong_option_names_the_nearest(minicpm: Run, script: Script, command: str) -> None:
    result = minicpm(command, "--temprature", "1")
    assert result.code == 2 and "--temperature" in result.err
