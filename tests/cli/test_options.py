"""Options reach the engine as given, and wrong ones end in one line that helps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from minicpm4.cli import run
from minicpm4.cli.options import EngineFlags, parse_sparse
from minicpm4.config.choices import WEIGHT_CHOICES
from minicpm4.engine.drafters import DRAFTS, EAGLE, MODEL
from minicpm4.engine.llm import LLM
from minicpm4.errors import ConfigError, MemoryPlanError
from minicpm4.formats.kinds import KINDS
from tests.cli.conftest import Result, Script

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("topk=16", {"topk": 16}),
        ("topk=16,window=1024,dense_len=-1", {"topk": 16, "window_size": 1024, "dense_len": -1}),
        ("block=128, stride = 16", {"block_size": 128, "kernel_stride": 16}),
        ("window_size=512,init=2,kernel=32", {"window_size": 512, "init_blocks": 2, "kernel_size": 32}),
        ("lse=on,use_nope=False", {"lse_approx": True, "use_nope": False}),
    ],
)
def test_sparse_settings_are_read(text: str, values: dict[str, Any]) -> None:
    assert parse_sparse(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--sparse has ''. write key=value"),
        ("topk", "--sparse has 'topk'"),
        ("AUTO", "separated by commas, or auto alone"),
        ("auto,topk=3", "separated by commas, or auto alone"),
        ("topk=16,", "--sparse has ''"),
        ("topc=16", "unknown key 'topc'. did you mean 'topk'?"),
        ("windw=16", "did you mean 'window'?"),
        ("zzzzzz=1", "known: block, block_size"),
        ("topk=many", "topk=many is not a whole number"),
        ("topk=1.5", "topk=1.5 is not a whole number"),
        ("lse=maybe", "lse=maybe is not a switch"),
        ("window=1,window_size=2", "gives window_size twice"),
    ],
)
def test_wrong_sparse_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sparse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ([], {}),
        (["--weights", "int8"], {"weights": "int8"}),
        (["--attention", "sparse", "--kv", "float32"], {"attention": "sparse", "kv": "float32"}),
        (
            ["--backend", "ref", "--context", "4096", "--threads", "1"],
            {"backend": "ref", "context": 4096, "threads": 1},
        ),
        (["--ignore-field", "a", "--ignore-field", "b.c"], {"ignore_fields": ("a", "b.c")}),
        (["--sparse", "topk=4,window=128"], {"sparse": {"topk": 4, "window_size": 128}}),
    ],
)
def test_engine_options_reach_the_engine(
    minicpm: Run, script: Script, args: list[str], settings: Any
) -> None:
    assert minicpm("generate", "--prompt", "x", *args).code == 0
    assert script.loads == [("smollm2-135m-instruct", {"max_batch": 1} | settings)]


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ([], "max_tokens", 256),
        (["-n", "5"], "max_tokens", 5),
        (["--temperature", "0"], "temperature", 0.0),
        (["--top-k", "7"], "top_k", 7),
        (["--top-p", "0.5"], "top_p", 0.5),
        (["--min-p", "0.1"], "min_p", 0.1),
        (["--repetition-penalty", "1.1"], "repetition_penalty", 1.1),
        (["--presence-penalty", "0.2"], "presence_penalty", 0.2),
        (["--frequency-penalty", "0.3"], "frequency_penalty", 0.3),
        (["--seed", "9"], "seed", 9),
        (["--stop", "a", "--stop", "b"], "stop", ("a", "b")),
        (["--min-tokens", "2"], "min_tokens", 2),
        (["--logit-bias", "7=-inf", "--logit-bias", "8=2.5"], "logit_bias", {7: float("-inf"), 8: 2.5}),
        (["--stop-token-id", "5", "--stop-token-id", "6"], "stop_token_ids", (5, 6)),
        (["--ignore-eos"], "ignore_eos", True),
        (["--samples", "3"], "n", 3),
        (["--logprobs", "2", "--json"], "logprobs", 2),
        (["--json-schema", '{"const": 1}'], "json_schema", {"const": 1}),
        (["--json-schema", "{}"], "json_schema", {"type": "object"}),
        (["--json-schema", "true"], "json_schema", {"type": "object"}),
        (["--regex", "[ab]"], "regex", "[ab]"),
        (["--grammar", "sql"], "grammar", "sql"),
        (["--choice", "a", "--choice", "b"], "choice", ("a", "b")),
    ],
)
def test_sampling_options_reach_the_engine(
    minicpm: Run, script: Script, args: list[str], name: str, value: Any
) -> None:
    assert minicpm("generate", "--prompt", "x", *args).code == 0
    assert getattr(script.calls[0].params, name) == value


def test_grammars_and_schemas_are_read_from_files(minicpm: Run, script: Script, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="answers are constrained by llguidance, of the extra grammar")
    (tmp_path / "a.lark").write_text('start: "yes" | "no"')
    (tmp_path / "b.json").write_text('{"enum": [12]}')
    assert minicpm("generate", "--prompt", "x", "--grammar", str(tmp_path / "a.lark")).out in (
        "yes\n",
        "no\n",
    )
    assert minicpm("generate", "--prompt", "x", "--json-schema", str(tmp_path / "b.json")).out == "12\n"
    (tmp_path / "a.lark").write_text("start: foo")
    refused = minicpm("generate", "--prompt", "x", "--grammar", str(tmp_path / "a.lark"))
    assert (refused.code, refused.out) == (2, "") and "grammar cannot be followed" in refused.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "--promt", "x"], "No such option: --promt"),
        (
            ["generate", "--max_tokens", "3", "x"],
            "No such option: --max_tokens. did you mean --max-tokens?\n",
        ),
        (["generate", "--max-tokns", "3", "x"], "did you mean --max-tokens? (else --"),
        (["generate", "--temprature", "0", "x"], "--temprature. did you mean --temperature?\n"),
        (["generate", "--zzzzqq", "x"], "No such option: --zzzzqq. minicpm4 generate --help lists them"),
        (["generate", "--top-k", "many"], "--top-k many is not a whole number. give a whole number"),
        (["generate", "x", "-t", "hot"], "--temperature hot is not a number. give a number"),
        (["generate", "x", "--temperature=hot"], "--temperature hot is not a number"),
        (["generate", "What", "is", "it"], '(is it). put quotes around the question: minicpm4 generate "'),
        (["chat", "hi"], "(hi). leave it out: --model NAME names the model"),
        (["info", "a", "b"], "(b). put quotes around what has spaces in it"),
        (
            ["serve", "-m", "x"],
            "No such option: -m. the model has its place without one: minicpm4 serve MODEL",
        ),
        (["info", "--model", "x"], "the model has its place without one: minicpm4 info MODEL"),
        (["generate", "--temperature", "-1", "--prompt", "x"], "temperature = -1.0 is outside"),
        (["generate", "--sparse", "topc=1", "--prompt", "x"], "did you mean 'topk'?"),
        (["generte"], "No such command 'generte'"),
        (["zzzzqq"], "No such command 'zzzzqq'. minicpm4 --help lists them\n"),
        (["mcp", "zzzzqq"], "No such command 'zzzzqq'. minicpm4 mcp --help lists them\n"),
        (["help"], "No such command 'help'. minicpm4 --help shows it\n"),
        (["version"], "No such command 'version'. minicpm4 --version prints it\n"),
        (["help", "generate"], "No such command 'help'. minicpm4 generate --help shows it\n"),
        (["help", "mcp", "call"], "No such command 'help'. minicpm4 mcp call --help shows it\n"),
        (["mcp", "help", "call"], "No such command 'help'. minicpm4 mcp call --help shows it\n"),
        (["help", "generate", "chat"], "No such command 'help'. minicpm4 generate --help shows it\n"),
        (["mcp", "help", "me"], "No such command 'help'. minicpm4 mcp --help shows it\n"),
        (["generate", "--prompt", "x", "--json-schema", "{"], "--json-schema is not JSON"),
        (["generate", "--prompt", "x", "--json-schema", "no/file"], "cannot read no/file"),
        (["chat", "--grammar", "no/file"], "cannot read no/file"),
        (
            ["generate", "--prompt", "x", "--regex", "a", "--choice", "b"],
            "regex and choice are given together",
        ),
        (["info"], "MODEL"),
    ],
)
def test_wrong_options_are_one_line(minicpm: Run, script: Script, args: list[str], message: str) -> None:
    result = minicpm(*args)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert message in result.err
    assert script.loads == []


@pytest.mark.parametrize("command", ["generate", "chat", "bench", "info"])
def test_help_names_every_kind_of_weights(minicpm: Run, command: str) -> None:
    told = " ".join(minicpm(command, "--help").out.split())
    assert all(choice in told for choice in WEIGHT_CHOICES)


def test_usage_has_one_pair_of_brackets_and_summaries_are_whole(
    minicpm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    usages = {
        "generate": "[PROMPT]",
        "serve": "[MODEL]...",
        "data pack": "PATH...",
        "mcp tasks": "[NAME]...",
        "mcp add": "NAME",
        "info": "MODEL",
    }
    for command, usage in usages.items():
        first = minicpm(*command.split(), "--help").out.splitlines()[0]
        assert first == f"Usage: minicpm4 {command} [OPTIONS] {usage}"
    for group in ("mcp", "data", "spec", "eval"):
        assert "..." not in minicpm(group, "--help").out.partition("Commands:")[2]
    told = " ".join(minicpm("mcp", "--help").out.split())
    assert "export Turn what was done into text. data Make" in told


def test_weights_that_may_be_named_are_kinds() -> None:
    assert {*WEIGHT_CHOICES[1:]} <= {*KINDS}


def test_an_engine_error_is_one_line(minicpm: Run, script: Script) -> None:
    script.refusal = MemoryPlanError("9.1 GiB\x1b[2J are needed,\n4.0 GiB are free", "lower --context")
    result = minicpm("generate", "--prompt", "x")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: 9.1 GiB[2J are needed, 4.0 GiB are free. lower --context\n"


def test_debug_shows_the_traceback(minicpm: Run, script: Script) -> None:
    script.refusal = ConfigError("bad")
    with pytest.raises(ConfigError):
        minicpm("--debug", "generate", "--prompt", "x")


def test_a_bug_is_told_apart(minicpm: Run, script: Script) -> None:
    script.refusal = ZeroDivisionError("oops")
    result = minicpm("generate", "--prompt", "x")
    assert result.code == 1
    assert result.err.startswith("error: ZeroDivisionError: oops. This should not happen")


INTERRUPTED = """
import sys
from minicpm4 import __main__, {module} as module

def strike(*args, **kwargs):
    exec("raise KeyboardInterrupt")

module.{name} = strike
sys.argv = ["minicpm4", "models"]
__main__.main()
"""


@pytest.mark.parametrize(("module", "name"), [("zoo", "list_models"), ("cli", "main")])
def test_ctrl_c_is_130_wherever_it_hits(tmp_path: Path, module: str, name: str) -> None:
    (tmp_path / "struck.py").write_text(INTERRUPTED.format(module=module, name=name))
    command = [sys.executable, "-m", "struck"]  # of -c, Python looks less closely how it ended
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


SLOW_IMPORT = """
import os, runpy, signal, sys

class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.meta_path.insert(0, Strike())
runpy.run_module("minicpm4", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_ctrl_c_as_the_command_is_imported_is_130() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_IMPORT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_every_field_of_sampling_has_an_option() -> None:
    from minicpm4 import SamplingParams
    from minicpm4.cli.sampling import SampleFlags, SamplingFlags

    elsewhere = {"n": "samples", "calls": "tools"}  # by other names
    groups = (SamplingFlags, SampleFlags, EngineFlags)  # `attention` is the engine's
    options = {field.name for group in groups for field in fields(group)}
    asked = {field.name for field in fields(SamplingParams) if field.init} - {
        "shows_marks"
    }  # as chats need it
    wanted = {elsewhere.get(name, name) for name in asked}
    assert wanted <= options
    assert {field.name for field in fields(SamplingFlags)} <= wanted


def test_what_was_given_is_told_in_json() -> None:
    """For reports, and for what is kept: paths, too."""
    given = EngineFlags(
        frspec_path=Path("r.json"), draft_model_path=Path("d"), memory=2.0, ignore_field=["x"]
    )
    told = {"frspec_path": "r.json", "draft_model_path": "d", "memory": 2.0, "ignore_field": ["x"]}
    assert json.loads(json.dumps(given.told())) == told


@pytest.mark.parametrize(
    "words",
    [
        "eval code smollm2-135m-instruct --problems FILE --keep k --json FILE",
        "eval math smollm2-135m-instruct --problems FILE --keep k --json FILE",
        "eval ruler smollm2-135m-instruct --text FILE --keep k --json FILE",
        "eval ruler smollm2-135m-instruct --text FILE --keep k --plot FILE",
        "eval niah smollm2-135m-instruct --text FILE --json FILE",
        "eval sparse smollm2-135m-instruct --text FILE --plot FILE",
        "eval ppl smollm2-135m-instruct --text FILE --json FILE",
        "eval ppl FILE --text other --json FILE",
        "eval compare FILE other --plot FILE",
        "bench smollm2-135m-instruct --json FILE --plot FILE",
        "convert smollm2-135m-instruct out --test FILE --json FILE",
        "mcp eval FILE --output FILE",
        "mcp eval other --offer 2 --pool FILE --output FILE",
        "mcp export FILE --output FILE",
        "spec rank smollm2-135m-instruct --corpus FILE --out FILE",
    ],
)
def test_nothing_is_written_where_something_is_read(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "given.svg"
    file.write_text("Said once.")
    assert run([word.replace("FILE", str(file)) for word in words.split()]) == 2
    assert f"{file} is named twice in this command" in capsys.readouterr().err
    assert file.read_text() == "Said once." and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("draft", [*DRAFTS, MODEL, EAGLE])
def test_every_drafter_is_told_of(draft: str) -> None:
    name = {MODEL: "model:NAME", EAGLE: "eagle:PATH"}.get(draft, draft)
    (told,) = get_type_hints(EngineFlags, include_extras=True)["draft"].__metadata__
    page = (Path(__file__).parents[2] / "docs" / "drafting.md").read_text(encoding="utf-8")
    assert name in re.findall(r"[\w:]+", told.help), "the help of --draft"
    assert f'"{name}"' in (LLM.__doc__ or ""), "what LLM says of its arguments"
    assert f"| `{name}`" in page, "the table of docs/drafting.md"
