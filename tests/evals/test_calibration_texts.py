"""Windows of texts to calibrate on."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm4.errors import CheckpointError
from minicpm4.evals.calibration_texts import read_windows
from minicpm4.testing import BOS, byte_text


def test_windows_begin_as_texts_do_and_have_room_behind_that(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdef")
    tokenizer = byte_text().tokenizer
    assert read_windows(tokenizer, [file], 2, 4) == [[BOS, *b"abc"], [BOS, *b"def"]]
    assert read_windows(tokenizer, [file], 1, 3, [7, 8]) == [[7, 8, ord("a")]]
    for length in (1, 2):
        with pytest.raises(CheckpointError, match=f"a text of {length} tokens has no room behind the 2 with"):
            read_windows(tokenizer, [file], 1, length, [7, 8])
    with pytest.raises(CheckpointError, match="the text has 6 tokens, one window takes 9"):
        read_windows(tokenizer, [file], 1, 9)
