"""No function is longer than one can read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lines of a function's body and of a test's, at most; where functions are looked for.
LONGEST, LONGEST_TEST = 60, 25
CODE = ("src", "scripts", "benchmarks", "examples", "tests")


def too_long(source: str, file: str) -> list[str]:
    """Functions of ``source``, the text of ``file``, whose bodies have too many lines: what stands behind
    decorators, signature and docstring. What is defined inside counts, and by itself as well."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.body[0], node.end_lineno or 0
            begin = first.lineno if ast.get_docstring(node) is None else (first.end_lineno or 0) + 1
            is_test = file.startswith("tests/") and node.name.startswith("test_")
            if last - begin + 1 > (LONGEST_TEST if is_test else LONGEST):
                found.append(f"{file}:{node.lineno} {node.name}: {last - begin + 1} lines")
    return found


def test_no_function_is_longer_than_one_can_read_at_once() -> None:
    files = [file for part in CODE for file in sorted((ROOT / part).rglob("*.py"))]
    assert len(files) > 900
    names = {file: file.relative_to(ROOT).as_posix() for file in files}
    assert [one for file, name in names.items() for one in too_long(file.read_text("utf-8"), name)] == []


@pytest.mark.parametrize(
    ("file", "name", "most"),
    [
        ("src/a.py", "f", 60),
        ("tests/a.py", "test_f", 25),
        ("tests/a.py", "f", 60),
        ("src/a.py", "test_f", 60),
    ],
)
def test_a_function_that_is_too_long_is_found(file: str, name: str, most: int) -> None:
    for head in ("", '    """Of\n\n    two lines."""\n'):
        long = f"@d(\n    1\n)\nasync def {name}(\n    a,\n    b,\n):\n{head}" + "    a\n" * most
        assert too_long(long, file) == []
        assert too_long(long + "    a\n", file) == [f"{file}:4 {name}: {most + 1} lines"]
