"""No test fails because a machine is slow: none has a limit of seconds for what it tests.

What takes minutes hangs, and is ended by pytest (``timeout`` in pyproject.toml) or by a wait of a minute or
more. That something takes long enough may be asked: a slow machine only makes it truer. Work in the size of
its input is told by ``tests.growth``, the order of events by ``tests.waiting``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.growth import is_linear

TESTS = Path(__file__).parent
CLOCKS = {"perf_counter", "monotonic", "time", "process_time", "perf_counter_ns", "monotonic_ns", "time_ns"}
WAITS = {"wait", "join", "acquire", "result", "exception"}
LIMITED = WAITS | {"wait_for", "communicate", "run"}  # by a keyword
LEAST = 60  # seconds that something may be waited for
# Function -> why it may.
REASONS = {
    "growth.is_linear": "compares what two sizes take on one machine",
    "cli/test_interrupts.test_no_moment_ends_in_a_traceback": "it says when to interrupt",
    "test_testing.test_an_answer_stalls_until_it_is_let_go": "asks that nothing comes",
    "serve/test_connections.drip": "a pause",
    "serve/test_shelf.long_load": "a pause",
}


def _name(call: ast.Call) -> str:
    """What is called, without the object that it belongs to."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _reads_a_clock(node: ast.AST, told: set[str]) -> bool:
    """Whether an expression has a call of a clock in it, or a name of those that were ``told`` one."""
    return any(
        (isinstance(one, ast.Name) and one.id in told)
        or (isinstance(one, ast.Call) and _name(one) in CLOCKS and not one.args)
        for one in ast.walk(node)
    )


def _names_of_times(function: ast.AST) -> set[str]:
    """Names that hold what a clock said, or what was made of that."""
    told: set[str] = set()
    for _ in range(3):  # as many assignments as may lie between a clock and a comparison
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = [node.value, *targets] if node.value is not None else []
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append":
                assert isinstance(node.func, ast.Attribute)
                targets, found = [node.func.value], list(node.args)
            else:
                continue
            if any(_reads_a_clock(one, told) for one in found):
                told |= {one.id for t in targets for one in ast.walk(t) if isinstance(one, ast.Name)}
    return told


def _is_limit(compared: ast.Compare, told: set[str]) -> bool:
    """Whether a time is compared, but for ``time > least``."""
    left, *right = (_reads_a_clock(one, told) for one in (compared.left, *compared.comparators))
    least = len(right) == 1 and isinstance(compared.ops[0], ast.Gt | ast.GtE) and left and not right[0]
    return (left or any(right)) and not least


def _is_short_wait(call: ast.Call) -> bool:
    """Whether a method or a process is waited for with a limit that a busy machine may reach."""
    alone = [one for one in call.args if len(call.args) == 1 and isinstance(call.func, ast.Attribute)]
    given = alone if _name(call) in WAITS else []
    given += [word.value for word in call.keywords if word.arg == "timeout" and _name(call) in LIMITED]
    values = [one.value for one in given if isinstance(one, ast.Constant)]
    return any(type(one) in (int, float) and one < LEAST for one in values)


def limits(source: str, module: str = "m") -> list[str]:
    """Where a test can fail for lack of time."""
    found = []
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for function in [*functions, *classes]:
        if f"{module}.{function.name}" in REASONS:
            continue
        told = _names_of_times(function) if any(f"{word}(" in source for word in CLOCKS) else set()
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and _is_limit(node, told):
                found.append(f"{module}:{node.lineno} limits a time")
            if isinstance(node, ast.Call) and _is_short_wait(node):
                found.append(f"{module}:{node.lineno} waits for less than {LEAST} s")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node) == "settings":
            found += [
                f"{module}:{node.lineno} sets a deadline" for word in node.keywords if word.arg == "deadline"
            ]
    return found


def test_no_test_is_about_the_speed_of_this_machine() -> None:
    files = {file.relative_to(TESTS).with_suffix("").as_posix(): file for file in TESTS.rglob("*.py")}
    found = [each for name, file in files.items() for each in limits(file.read_text("utf-8"), name)]
    assert found == []
    assert {reason.rpartition(".")[0] for reason in REASONS} <= set(files)


def test_work_in_the_square_of_its_input_is_found() -> None:
    assert not is_linear(lambda count: range(count), lambda all: sum(1 for _ in all for _ in all), 250)
    assert is_linear(lambda count: range(count * 1000), sum, 250)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("assert time.perf_counter() - start < 10", 1),
        ("took = perf_counter() - start\n    assert took < 1.0", 1),
        ("seconds.append(monotonic() - began)\n    assert sorted(seconds)[0] < 0.03", 1),
        ("end = time.monotonic() + 20\n    while time.monotonic() < end: pass", 1),
        ("assert 1 < time.monotonic() - began < 2", 1),
        ("assert 5 > time.monotonic() - began", 1),
        ("assert thread.join(10)", 1),
        ("run(command, timeout=30)", 1),
        ("settings(max_examples=3, deadline=2000)", 1),
        ("settings(deadline=None)", 1),
        ("assert time.monotonic() - began > 2", 0),
        ("assert ', '.join(names) == 'a'", 0),
        ("run(command, timeout=600)", 0),
        ("assert task.run(deadline=0).seconds > 0", 0),
    ],
)
def test_limits_are_found(line: str, count: int) -> None:
    assert len(limits(f"def f():\n    {line}\n")) == count
