"""What ends in a line costs no more than that: help, wrong words and wrong options import nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What takes a tenth of a second of processor time or more to import, with all that it brings.
HEAVY = {
    *("torch", "transformers", "triton", "tokenizers", "jinja2", "huggingface_hub", "pyarrow", "llguidance"),
    *("rich", "prompt_toolkit", "starlette", "uvicorn", "httpx", "httpx2", "mcp", "jsonschema"),
    *("minicpm4.engine.llm", "minicpm4.text.template"),
}
TOLD = (
    "import sys\nfrom minicpm4.cli import run\ncode = run(sys.argv[1:])\nprint(file=sys.stderr)\n"
    "print(code, *sys.modules, file=sys.stderr)"
)


def imported(*words: str) -> tuple[int, set[str]]:
    """The exit code of a command line, and the modules that it took."""
    done = subprocess.run([sys.executable, "-c", TOLD, *words], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), {*modules}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((("--help",), 0), (("--version",), 0), (("nothing",), 2), (("--nope",), 2), (("pull",), 2)),
        *((("generate", "--nope"), 2), (("chat", "--temperature", "x"), 2), (("serve", "--prot", "3"), 2)),
        *((("convert",), 2), (("bench", "--nope"), 2), (("train",), 2), (("info", "--nope"), 2)),
        *((("data", "pack", "--nope"), 2), (("spec", "nope"), 2), (("models", "--nope"), 2)),
        *((("doctor", "--nope"), 2), (("eval", "nope"), 2), (("mcp", "nope"), 2), (("chat", "--help"), 0)),
    ],
    ids=str,
)
def test_help_and_wrong_words_take_not_even_numpy(words: tuple[str, ...], code: int) -> None:
    found, modules = imported(*words)
    assert found == code and not modules & {*HEAVY, "numpy"}


def test_a_model_that_is_nowhere_takes_nothing_that_runs_models() -> None:
    code, modules = imported("generate", "-m", "nowhere", "a")
    assert code == 2 and not modules & HEAVY


def test_the_package_alone_is_next_to_nothing() -> None:
    told = "import sys, minicpm4; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert not {*found.split()} & {*HEAVY, "numpy", "typer"}


def test_an_engine_brings_no_client_of_http() -> None:
    told = "import sys, minicpm4.engine.llm; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert not {*found.split()} & {"http.client", "ssl", "urllib.request", "difflib"}
