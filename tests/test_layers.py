"""Imports point down one list of layers; core modules need no more than the core dependencies.

Every import statement counts, those inside functions too: a cycle hidden in a function is a cycle.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "minicpm4"

# Lowest first. "" is the package itself (minicpm4/__init__.py), which shows the engine to users.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "plot", "files", "places", "machine", "progress", "lazy"),
    ("text", "formats", "zoo", "sandbox", "_cpu"),
    ("kernels",),
    ("model",),
    ("engine", "quantize", "train", "data"),
    ("",),
    ("testing", "serve", "deploy", "tunnel", "rl", "evals", "agents", "spec"),
    ("cli", "__main__"),
)
# Imports between two parts of one layer.
SIBLINGS = {
    ("config", "errors"),
    ("config", "files"),
    ("files", "errors"),
    ("places", "errors"),
    ("progress", "errors"),
    ("zoo", "formats"),
    ("text", "formats"),
    ("__main__", "cli"),
    ("train", "data"),
    ("agents", "serve"),
}
# Parts that may import packages beyond the core dependencies (each behind an extra).
EXTRAS = (
    "sandbox",
    "kernels.gpu",
    "engine.gpu_runner",
    "engine.grammar",
    "engine.grammar_text",
    "kernels.autograd",
    "kernels.fp8",
    "kernels.sparse_grad",
    "kernels.straight_through",
    "kernels.unrolled",
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
ARRAY_FREE = tuple(
    f"engine.{name}"
    for name in ("scheduler", "steps", "pages", "sequence", "drafter", "suffix", "effort", "drafting")
)
# Parts that reach no torch by any import: data is packed, and a recipe explained, without it.
TORCH_FREE = (
    "data",
    "train.recipe",
    "train.settings",
    "train.schedule",
    "train.sources",
    "train.prepare",
    "train.head_plan",
    "train.saved",
    "train.going_on",
    "train.check",
    "train.stages",
    "train.footprint",
    "train.estimate",
    "train.parallel",
    "train.draft_estimate",
)
# What renames, locks or writes a file, beside ``open`` in a mode that writes.
FILE_CALLS = (
    "rename",
    "mkstemp",
    "NamedTemporaryFile",
    "fsync",
    "flock",
    "write_text",
    "write_bytes",
    "O_CREAT",
)
WRITING_MODE = re.compile(r"[rbt]*[wax+][wax+rbt]*")
# What cannot be written whole and then named, and why.
GROWING = {
    "minicpm4.train.metrics": "a log of lines, read while its run goes on; a half line at its end is dropped",
}
# Where str.splitlines, which cuts at U+2028, form feeds and six others too, is right. Elsewhere, and in files
# of lines: ``files.lines_of``.
SPLITS_LINES = {
    "src/minicpm4/agents/mcp/install.py": "an installer's output, shown",
    "src/minicpm4/agents/mcp/running.py": "a server's complaints, shown",
    "src/minicpm4/cli/terminal.py": "a table of our own, shown",
    "src/minicpm4/engine/grammar_text.py": "a message of an error, shown as one line",
    "src/minicpm4/files/encodings.py": "names in this source",
    "src/minicpm4/machine/cpu.py": "the kernel's ASCII",
    "src/minicpm4/machine/system.py": "lines that are cut in two name no control group",
    "src/minicpm4/text/meter.py": "the method that templates may call",
    "src/minicpm4/zoo/fetching.py": "a program's complaints, shown",
    "benchmarks/gguf_files.py": "texts to make a vocabulary of, and a docstring",
    "benchmarks/grammar.py": "a message of an error, shown",
    "benchmarks/human_eval_solutions.py": "bytes, which it cuts at ends of lines alone",
    "benchmarks/large_conversion.py": "the kernel's ASCII",
    "benchmarks/load_time.py": "JSON in ASCII that its own child printed, and the kernel's ASCII",
    "benchmarks/peers/gptqmodel_file.py": "a docstring",
    "benchmarks/peers/llama_cpp_file.py": "a docstring",
    "benchmarks/restored_prompt.py": "a docstring",
    "benchmarks/sparse_selection.py": "a docstring",
    "benchmarks/start_time.py": "JSON in ASCII that its own child printed",
    "benchmarks/training/waiting.py": "a number that its own child printed",
    "scripts/chat_session.py": "a terminal's screen, shown",
    "scripts/fuzz.py": "counts that its own child wrote, and a trace, shown",
}
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


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """File -> the files that it imports, by dotted name: a package stands for its __init__."""
    files = {name.removesuffix(".__init__"): source for name, source in sources.items()}
    found: dict[str, set[str]] = {}
    for own, source in files.items():
        asked = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                asked |= {name if name in files else node.module for name in whole.values()}
                asked -= {node.module} if set(whole) <= {"_cpu"} else set()  # the extension is no file here
        found[own] = {name for name in asked if name in files and name != own}
    return found


def test_files_import_one_another_in_no_circle() -> None:
    TopologicalSorter(graph(dict(modules()))).prepare()
    circle = {"minicpm4.a": "from minicpm4.b import f", "minicpm4.b": "def f():\n    from minicpm4 import a"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph(circle)).prepare()


def test_schedulers_hold_no_arrays() -> None:
    for name, source in modules():
        if is_under(name, ARRAY_FREE):
            assert "numpy" not in {top.split(".")[0] for _, top in imports(source, name)}, name


def file_calls(source: str, module: str) -> list[str]:
    """Where ``source`` renames, locks or writes files itself: all of it belongs to minicpm4.files."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            own = node.attr == "replace" and isinstance(node.value, ast.Name) and node.value.id == "os"
            if own or node.attr in FILE_CALLS:
                found.append(f"{module}:{node.lineno} calls {node.attr}")
        elif isinstance(node, ast.Call) and _opens_to_write(node):
            found.append(f"{module}:{node.lineno} opens a file to write")
    return found


def _opens_to_write(call: ast.Call) -> bool:
    """Whether it is an ``open``, with a word among its arguments that is a mode of writing."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [w for a in (*call.args, *call.keywords) for w in ast.walk(a) if isinstance(w, ast.Constant)]
    modes = [w.value for w in words if isinstance(w.value, str)]
    return name == "open" and any(len(m) <= 3 and WRITING_MODE.fullmatch(m) for m in modes)


def test_files_are_written_in_one_place() -> None:
    found = [
        call
        for name, source in modules()
        if not is_under(name, ("files",))
        for call in file_calls(source, name)
    ]
    assert {call.split(":")[0] for call in found} == set(GROWING) and len(found) == len(GROWING), found
    assert file_calls("part.rename(x)\nos.replace(a, b)\ntext.replace(a, b)", "m") == [
        "m:1 calls rename",
        "m:2 calls replace",
    ]
    opened = "open(p, 'wb')\np.open(mode='a')\np.open('r+b' if x else 'rb')\nopen(p, 'rb')\nopen('abc.txt')"
    assert [call.split()[0] for call in file_calls(opened, "m")] == ["m:1", "m:2", "m:3"]


def test_lines_of_files_are_cut_in_one_place() -> None:
    found = set()
    for part in ("src", "benchmarks", "scripts"):
        for file in sorted((ROOT / part).rglob("*.py")):
            source = file.read_text(encoding="utf-8")
            if re.search(r"\.splitlines\(|\"splitlines\"", source):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == set(SPLITS_LINES)


def reached(module: str, sources: dict[str, str]) -> set[str]:
    """What ``module`` may import, directly or not: our modules by whole name, others' packages by first."""
    found: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.Import):
                asked = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} has a relative import"
                asked = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
            else:
                continue
            for one in asked:
                inside = [o for o in (one, f"{one}.__init__") if o in sources and one != "minicpm4"]
                new = inside if one.startswith("minicpm4.") else [one.split(".")[0]]
                left += [o for o in new if o in sources and o not in found and o != "minicpm4"]
                found |= set(new)
    return found


def test_what_needs_no_torch_reaches_none() -> None:
    sources = dict(modules())
    free = [name for name in sources if is_under(name, TORCH_FREE)]
    assert len(free) > len(TORCH_FREE)
    for name in free:
        assert "torch" not in reached(name, sources), name
    assert "torch" in reached("minicpm4.train.loop", sources)


@pytest.mark.parametrize(
    ("pattern", "homes"),
    [
        # What a table of ops can, it says; what it is called matters to it alone.
        (r"ops\.name\s*[!=]=|getattr\((self\.)?_?ops\b", ("kernels",)),
        # Pools and runners of a device are made in one place.
        (r"(?<!class )\b(KVPool|GpuRunner)\(", ("engine.executors",)),
    ],
)
def test_devices_are_asked_and_made_in_one_place(pattern: str, homes: tuple[str, ...]) -> None:
    for name, source in modules():
        found = re.search(pattern, source)
        assert found is None or is_under(name, homes), f"{name}: {found}"


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
