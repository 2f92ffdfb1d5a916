"""Some inputs of every reader: errors of ours, or nothing. scripts/fuzz.py goes on from here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import READERS
from tests.fuzz.reader import MOST, Reader

pytest.importorskip("torch")  # of the reader of checkpoints


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_made_up_inputs(name: str, rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].judge(READERS[name].draw(rng), Path(folder))


def test_what_is_no_error_of_ours_is_told() -> None:
    def read(case: bytes, folder: Path) -> None:
        raise KeyError(case)

    with pytest.raises(KeyError):
        Reader(name="x", draw=lambda rng: b"", read=read).judge(b"", Path())
    assert MOST > 300
