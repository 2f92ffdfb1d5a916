"""Imports point down one list of layers; core modules need no more than the core dependencies.

Every import statement counts, those inside functions too: a cycle hidden in a function is a cycle.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "minicpm4"

# Lowest first. "" is the package itself (minicpm4/__init__.py), which shows the engine to users.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "plot"),
    ("text", "formats", "zoo", "_cpu"),
    ("kernels",),
    ("model",),
    ("engine", "quantize", "train", "data"),
    ("",),
    ("serve", "deploy", "tunnel", "rl", "evals", "agents"),
    ("cli", "__main__"),
)
# Imports between two parts of one layer.
SIBLINGS = {
    ("config", "errors"),
    ("zoo", "formats"),
    ("text", "formats"),
    ("__main__", "cli"),
    ("train", "data"),
}
# Parts that may import packages beyond the core dependencies (each behind an extra).
EXTRAS = (
    "kernels.gpu",
    "model.gpu_cache",
    "engine.gpu_runner",
    "kernels.autograd",
    "kernels.fp8",
    "kernels.sparse_grad",
    "kernels.straight_through",
    "train",
    "data",
    "quantize",
    "serve",
    "deploy",
    "tunnel",
    "rl",
    "evals",
    "agents",
)
# Parts of the engine that handle integers only, so that they can be tested with plain lists.
ARRAY_FREE = ("engine.scheduler", "engine.pages", "engine.sequence")
IMPORT_NAMES = {"huggingface-hub": "huggingface_hub"}


def rank(part: str) -> int:
    """Position of a part in LAYERS."""
    for position, parts in enumerate(LAYERS):
        if part in parts:
            return position
    raise AssertionError(f"minicpm4.{part} has no layer: name one in LAYERS")


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of each import in ``source``; ``module`` resolves dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            if base == "minicpm4":  # `from minicpm4 import model` and `from minicpm4 import LLM`
                parts = {p for layer in LAYERS for p in layer if p}
                for alias in node.names:
                    yield node.lineno, f"minicpm4.{alias.name}" if alias.name in parts else base
            else:
                yield node.lineno, base


def violations(source: str, module: str) -> list[str]:
    """Upward imports of ``source``, the text of ``module`` (a dotted name with minicpm4)."""
    own = module.split(".")[1] if "." in module else ""
    found = []
    for line, name in imports(source, module):
        if name.split(".")[0] != "minicpm4":
            continue
        part = name.split(".")[1] if "." in name else ""
        if not (part == own or rank(part) < rank(own) or (own, part) in SIBLINGS):
            found.append(f"{module}:{line} imports {name}")
    return found


def foreign(source: str, module: str, allowed: frozenset[str]) -> list[str]:
    """Imports of packages that are neither ours, nor standard, nor ``allowed``."""
    tops = {(line, name.split(".")[0]) for line, name in imports(source, module)}
    known = allowed | sys.stdlib_module_names | {"minicpm4"}
    return [f"{module}:{line} imports {top}" for line, top in sorted(tops) if top not in known]


def modules() -> list[tuple[str, str]]:
    """(dotted name, source) of every module of the package."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        # A package keeps its trailing __init__, so that one dot means the package itself.
        name = "minicpm4" if parts == ("minicpm4", "__init__") else ".".join(parts)
        found.append((name, file.read_text(encoding="utf-8")))
    return found


def core_dependencies() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = (re.split(r"[^A-Za-z0-9_-]", line)[0] for line in project["dependencies"])
    return frozenset(IMPORT_NAMES.get(name, name) for name in names)


def is_under(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"minicpm4.{prefix}.") for prefix in prefixes)


def test_imports_point_down() -> None:
    assert [v for name, source in modules() for v in violations(source, name)] == []


def test_core_imports_core_dependencies_only() -> None:
    core = core_dependencies()
    found = [
        v for name, source in modules() if not is_under(name, EXTRAS) for v in foreign(source, name, core)
    ]
    assert found == []


def test_schedulers_hold_no_arrays() -> None:
    for name, source in modules():
        if is_under(name, ARRAY_FREE):
            assert "numpy" not in {top.split(".")[0] for _, top in imports(source, name)}, name


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("minicpm4.kernels.ref", "from minicpm4.model.cache import Cache", True),
        ("minicpm4.kernels.ref", "def f():\n    import minicpm4.engine", True),
        ("minicpm4.kernels.ref", "from ..engine import runner", True),
        ("minicpm4.kernels.ref", "from minicpm4 import engine", True),
        ("minicpm4.engine.runner", "from minicpm4 import LLM", True),
        ("minicpm4.engine.runner", "from minicpm4.train import loop", True),
        ("minicpm4.formats.gguf", "from minicpm4.text.chat import f", True),
        ("minicpm4.kernels.ref", "from .contract import Ops", False),
        ("minicpm4.kernels.ref", "from ..config import SparseConfig", False),
        ("minicpm4.config.rope", "from minicpm4.errors import ConfigError", False),
        ("minicpm4.cli.chat", "def f():\n    from minicpm4 import LLM", False),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, bad: bool) -> None:
    assert bool(violations(source, module)) == bad


def test_a_foreign_package_is_found() -> None:
    core = core_dependencies()
    assert {"numpy", "typer", "huggingface_hub"} <= core
    assert foreign("def f():\n    import torch.nn", "minicpm4.engine.runner", core) == [
        "minicpm4.engine.runner:2 imports torch"
    ]
    assert foreign("import numpy as np, json", "minicpm4.engine.runner", core) == []
