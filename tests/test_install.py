"""scripts/install.py: what is fetched beside what is built, and what its line of progress says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
INSTALL: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "install.py"))

PROJECT = """
[project]
name = "minicpm4"
dependencies = ["numpy>=1.26", "rich"]
[project.optional-dependencies]
train = ["torch>=2.6"]
serve = ["starlette", "minicpm4[grammar]"]
grammar = ["llguidance"]
dev = ["pytest>=8", "ruff"]
all = ["minicpm4[serve, dev]", "minicpm4[grammar]"]
"""


@pytest.mark.parametrize(
    ("extras", "more"),
    [
        ("", []),
        ("[dev]", ["pytest>=8", "ruff"]),
        ("[dev,train]", ["pytest>=8", "ruff", "torch>=2.6"]),
        ("[all]", ["starlette", "pytest>=8", "ruff", "llguidance"]),
    ],
)
def test_a_checkout_is_built_beside_the_fetching_of_what_it_needs(
    tmp_path: Path, extras: str, more: list[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    arguments = ["--editable", f"{tmp_path}{extras}", "torch==2.13.0", "--also", "--no-deps", "model==1"]
    build, model, fetch = INSTALL["commands_of"](arguments)
    assert build == ["--no-deps", "--editable", str(tmp_path)]
    assert model == ["--no-deps", "model==1"]
    assert fetch == ["numpy>=1.26", "rich", *more, "torch==2.13.0"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Collecting typing-extensions>=4", "fetching typing-extensions"),
        ("  [7/32] Building CXX object CMakeFiles/kernels.dir/cpp/avx2.cpp.o", "compiling 7 of 32"),
        ("Installing collected packages: numpy", "installing"),
        ("  -- Build files have been written to: build/cp311", "compiling"),
        ("  Requirement already satisfied: pip", None),
    ],
)
def test_progress_says_what_is_done(line: str, said: str | None) -> None:
    assert INSTALL["step"](line) == said
