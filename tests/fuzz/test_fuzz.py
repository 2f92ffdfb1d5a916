"""Some inputs of every reader: errors of ours, or nothing. scripts/fuzz.py goes on from here."""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm4.errors import ConfigError
from tests.fuzz import READERS
from tests.fuzz.reader import Reader, check_quotes

ONE_END = ("quantised", "metrics")  # what is read of it ends in the same way each time
NONE_REFUSED = ("replies", "calls", "bodies", "extension", "questions", "measured")
OF_TRAININGS = ("checkpoint", "head-runs")
NO_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="trainings need torch")
EVERY = [pytest.param(name, marks=NO_TORCH if name in OF_TRAININGS else ()) for name in READERS]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_made_up_inputs(name: str, rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].judge(READERS[name].draw(rng), Path(folder))


@pytest.mark.parametrize("name", [one for one in EVERY if one.values[0] not in ONE_END])
def test_inputs_are_read_and_refused(name: str) -> None:
    """Of inputs that all are refused at once the readers would see nothing; of quantised folders the tensors
    are read, and only then is the configuration refused."""
    found: set[str] = set()
    for i in range(400):
        with tempfile.TemporaryDirectory() as folder:
            found.add(READERS[name].judge(READERS[name].draw(Random(i)), Path(folder)))
        if "read" in found and (len(found) > 1 or name in NONE_REFUSED):
            return
    raise AssertionError(found)


def test_what_is_no_error_of_ours_is_told() -> None:
    def read(case: bytes, folder: Path) -> None:
        raise KeyError(case)

    with pytest.raises(KeyError):
        Reader(name="x", draw=lambda rng: b"", read=read).judge(b"", Path())


QUOTES = {
    "bytes": (b"\0\1" * 200, repr(b"\0\1" * 200)),
    "numbers": (b"[" + b"1," * 200 + b"1]", repr([1] * 201)),
    "table": (json.dumps({f"k{i}": i for i in range(99)}).encode(), repr({f"k{i}": i for i in range(99)})),
    "escapes": (json.dumps("é" * 400).encode(), "é" * 400),
    "words": (b"two words " * 50, "two words " * 50),
}


@pytest.mark.parametrize("name", QUOTES)
def test_more_than_is_quoted_is_found(name: str) -> None:
    case, said = QUOTES[name]
    with pytest.raises(AssertionError, match="300 characters are quoted"):
        check_quotes(f"x.json has {said}", case)
    check_quotes(f"x.json has {said[:250]}… ({len(said)} characters) " + "of which none fits " * 20, case)


def test_a_message_of_many_names_is_too_long() -> None:
    names = [f"name{i}" for i in range(400)]

    def read(case: bytes, folder: Path) -> None:
        raise ConfigError(f"these are not known: {'; '.join(names)}", f"use one of {'; '.join(names)}")

    with pytest.raises(AssertionError, match="a message of"):
        Reader(name="x", draw=lambda rng: b"", read=read).judge(json.dumps(names).encode(), Path())
