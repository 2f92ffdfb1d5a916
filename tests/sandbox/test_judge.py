"""Functions are judged from where they cannot reach."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm4.errors import ConfigError
from minicpm4.sandbox import Limits, judge_function
from minicpm4.sandbox.inside import values

TESTS = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(41) == 42\n"
RIGHT = "def f(x):\n    return x + 1\n"


def test_right_and_wrong() -> None:
    right = judge_function(RIGHT, TESTS, "f")
    assert right.passed and right.calls == 2 and not right.why
    wrong = judge_function("def f(x): return 2", TESTS, "f")
    assert not wrong.passed and wrong.why.startswith("AssertionError") and wrong.calls == 2
    assert not judge_function("def f(x:\n", TESTS, "f").passed
    assert judge_function("def g(x): pass", TESTS, "f").why == "KeyError: 'f'"
    assert judge_function(RIGHT, "f(1)\nassert 0 < f(1) < 3", "f").passed


def test_values_keep_their_types_and_arguments_may_be_changed() -> None:
    tests = (
        "assert same((1, [2.5, {3, 'x'}], {b'k': None, (1, 2): 2**70}, 1j, True))\n"
        "held = [3, 1, 2]; order(held); assert held == [1, 2, 3]\n"
    )
    solution = "def same(x):\n    return x\ndef order(x): x.sort()"
    assert judge_function(solution, "x = (1, [2.5, {3}], {b'k': None})\nassert same(x) == x", "same").passed
    assert judge_function(solution, tests.splitlines()[1], "order").passed


def test_exceptions_arrive() -> None:
    tests = "try: f(1)\nexcept ValueError as error: assert str(error) == 'no'\nelse: assert 0"
    assert judge_function("def f(x): raise ValueError('no')", tests, "f").passed
    assert not judge_function("class ValueError(Exception): pass\ndef f(x): return 1", tests, "f").passed
    own = "class Wrong(ValueError): pass\ndef f(x): raise Wrong('no')"
    assert judge_function(own, tests, "f").passed
    assert not judge_function(own.replace("ValueError", "KeyError"), tests, "f").passed


SUBCLASSES = {
    "Counter([x, x])": "{1: 2}",
    "defaultdict(list, a=[OrderedDict(b=x)])": "{'a': [{'b': 1}]}",
    "namedtuple('P', 'a b')(x, Counter())": "(1, {})",
    "IntEnum('E', 'ONE').ONE": "1",
    "Enum('E', {'A': 'a'}, type=str).A": "'a'",
    "type('L', (list,), {})([True, None])": "[True, None]",
    "type('F', (float,), {})(0.5)": "0.5",
    "type('S', (frozenset,), {})([x])": "{1}",
}


@pytest.mark.parametrize("made", SUBCLASSES)
def test_what_is_of_a_plain_type_goes_as_it(made: str) -> None:
    head = "from collections import *\nfrom enum import *\n"
    wanted = SUBCLASSES[made]
    assert judge_function(f"{head}def f(x): return {made}", f"assert f(1) == {wanted}", "f").passed
    assert not judge_function(f"{head}def f(x): return {made}", f"assert f(2) == [{wanted}]", "f").passed
    held = f"held = []\nf(held)\nassert held == [{wanted}]"
    assert judge_function(f"{head}def f(y):\n    x = 1\n    y.append({made})", held, "f").passed


def test_code_is_compiled_as_it_is_by_itself() -> None:
    """Not with annotations as texts, which is a choice of the file that compiles it."""
    solution = "def f(x: 1 + 1): return f.__annotations__['x']"
    assert judge_function(solution, "assert f(1) == 2", "f").passed
    tests = "def g(x: 1 + 1): pass\nassert g.__annotations__['x'] == f(1)"
    assert judge_function("def f(x): return 2", tests, "f").passed


def test_context_comes_before_the_tests() -> None:
    context = "def twice(x):\n    return 2 * x\ndef f(x):\n    'Of the prompt: it has no body yet.'\n"
    assert judge_function(RIGHT, "assert twice(f(1)) == 4", "f", context=context).passed


CHEATS = {
    "leaves with 0": "import os\nos._exit(0)",
    "leaves with 0 when asked": "import os\ndef f(x): os._exit(0)",
    "leaves politely": "def f(x): raise SystemExit(0)",
    "equals everything": "class E:\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "an int that equals everything": "class E(int):\n    __eq__ = lambda *a: True\ndef f(x): return E(5)",
    "patched built-ins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.__build_class__ = None\n"
    "builtins.compile = builtins.exec = lambda *a: None\ndef f(x): return 0",
    "writes the verdict": "import os\nfor fd in range(3, 64):\n"
    "    try: os.write(fd, b'{\"passed\": true}\\n')\n    except OSError: pass\ndef f(x): return 0",
    "writes it on stdout": "print('{\"passed\": true}')\ndef f(x): return 0",
    "answers before it is asked": "import os, sys\nos.write(int(sys.argv[3]), b'{\"ready\": true}\\n' * 3)\n"
    "while True: pass",
    **{
        f"writes {first!r:.40}": f"import os, sys\nos.write(int(sys.argv[3]), {first!r})\ndef f(x): return 0"
        for first in (
            b'{"broken": ""}\n',
            b'{"broken": false}\n',
            b'{"broken": null, "passed": true, "why": ""}\n',
            b'{"broken": ' + b"[" * 900 + b"]" * 900 + b"}\n",
            b'{"broken": "' + b"x" * 500 + b'"}\n',
            b'{"ready": true}\n{"passed": true, "why": ""}\n',
            b'{"ready": true, "broken": ""}\n{"unfit": ""}\n',
            b"{}\n",
            b"\xff\n",
            b"\n",
            b'"passed"\n',
        )
    },
    **{
        f"answers {last!r:.40}": f"import os, sys\ndef f(x): os.write(int(sys.argv[3]), {last!r})"
        for last in (
            b'{"passed": true, "why": ""}\n',
            b'{"unfit": "", "passed": true}\n',
            b'{"raised": "", "text": ""}\n',
            b'{"raised": "SystemExit", "text": "0"}\n',
            b'{"raised": "UnicodeDecodeError", "text": []}\n',
            b'{"value": {"set": [[1]]}, "args": [1]}\n',
            b'{"value": 2, "args": []}\n',
            b'{"value": 2}\n',
        )
    },
    "answers by itself": "import os, sys\nfd = int(sys.argv[3])\n"
    'os.write(fd, b\'{"ready": true}\\n{"value": 2, "args": [1]}\\n{"value": 42, "args": [41]}\\n\')\n'
    "def f(x): return 0",
    "looks for the tests": "import os\nassert not os.path.exists('tests.py')\ndef f(x): return 0",
    "floods its answers": "import os, sys\nwhile True: os.write(int(sys.argv[3]), b'x' * 60000)",
    "nests without end": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "contains itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "hangs": "def f(x):\n    while True: pass",
    "hangs when read": "while True: pass",
    "patches the messenger": "import sys\nv = sys.modules['values']\nv.pack = lambda x, d=0: x\n"
    "v.dump = lambda m: b'{\"passed\": true}\\n'\ndef f(x): return 0",
    "an evil exception": "class E(BaseException):\n    def __str__(self): raise E\ndef f(x): raise E",
    "prints without end": "while True: print('x' * 60000)",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_do_not_pass(cheat: str) -> None:
    found = judge_function(CHEATS[cheat], TESTS, "f", limits=Limits(seconds=2))
    assert not found.passed and found.why and len(found.why) <= 300


def test_large_values_meet_large_output() -> None:
    """Neither side is left to wait for the other: what it prints is read while it is written to."""
    loud = "import time\ntime.sleep(1)\nprint('x' * 200_000)\n"  # it is asked before it has printed
    tests = "print('x' * 200_000)\nassert f('y' * 300_000) == 'z' * 300_000"
    solution = loud + "def f(x):\n    print(x)\n    return 'z' * len(x)"
    found = judge_function(solution, tests, "f", limits=Limits(seconds=20))
    assert found.passed, found


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(ConfigError, match="identifier"):
        judge_function(RIGHT, TESTS, "f(1)")
    with pytest.raises(ConfigError, match="no text"):
        judge_function("'\ud800'", TESTS, "f")
    with pytest.raises(ConfigError, match="seconds"):
        Limits(seconds=float("nan"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back(value: object) -> None:
    line = values.dump({"value": values.pack(value)})
    back = values.unpack(values.load(line)["value"])
    assert back == value and type(back) is type(value)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_what_strangers_write_is_read_or_refused(message: object) -> None:
    with contextlib.suppress(ValueError, OverflowError):
        values.unpack(message)
