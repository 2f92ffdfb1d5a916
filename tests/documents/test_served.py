"""The server of docs/server.md, started and asked as there; the Python of that page and of docs/mcp.md."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.documents.pages import PAGES, SERVED, blocks
from tests.documents.test_commands import Run, minicpm, world
from tests.documents.world import make_models
from tests.waiting import until

__all__ = ["minicpm", "world"]
START, CURL, TWO = SERVED


@contextmanager
def served(command: str) -> Iterator[int]:
    """A port of this machine at which a command serves, in place of the one that it names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(command.replace(" --port 8000", ""))[1:]
    words = [sys.executable, "-m", "minicpm4", *words, "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None

        def answers() -> bool:
            assert process.poll() is None, "it has ended"
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        try:
            until(answers)
            yield port
        finally:
            process.terminate()


def snippet(name: str) -> str:
    (found,) = blocks(next(page for page in PAGES if page.name == name), "python")
    return found


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_server_is_asked_as_in_its_page(world: Path) -> None:
    with served(START) as port:
        assert "Paris" in run_python(snippet("server.md").replace(":8000", f":{port}"))
        if shutil.which("curl") is None:
            pytest.skip("no curl here: its command was not run")
        command = shlex.split(CURL.replace(":8000", f":{port}"))
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.startswith("data: {") and said.rstrip().endswith("data: [DONE]")


@pytest.mark.slow
def test_two_models_are_served_under_their_names(world: Path, minicpm: Run) -> None:
    make_models(world)
    (world / "path" / "to").mkdir(parents=True)
    assert minicpm("convert", "model", "path/to/other.gguf", "--to", "gguf").code == 0
    # The small one has a context of its own, and no more.
    with (
        served(TWO.replace("--context 4096", "--context 256")) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer,
    ):
        assert [one["id"] for one in json.load(answer)["data"]] == ["small", "other"]


@pytest.mark.slow
def test_the_agent_of_the_page_works(world: Path) -> None:
    code = snippet("mcp.md").replace("qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct")
    assert run_python(code.replace("max_tokens=512", "max_tokens=64")).endswith("\n")
