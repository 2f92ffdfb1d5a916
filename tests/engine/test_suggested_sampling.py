"""How tokens are drawn where nobody says: as the checkpoint suggests, else sanely."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minicpm4 import LLM, SamplingParams


def test_sampling_defaults_are_the_checkpoints(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    file, sane = folder / "generation_config.json", {"temperature": 0.7, "top_p": 0.7}
    for text, defaults in (
        ('{"temperature": 0.8, "top_p": 0.9, "max_length": 10}', {"temperature": 0.8, "top_p": 0.9}),
        ('{"temperature": -1}', sane),
        ("{}", sane),
    ):
        file.write_text(text)
        with LLM(folder, threads=1) as llm:
            assert llm.sampling_defaults == defaults
    assert "is ignored: temperature" in caplog.text


def test_what_is_left_open_is_drawn_as_the_checkpoint_suggests(checkpoint: Path, tmp_path: Path) -> None:
    folder, prompt = tmp_path / "copy", [5, 6, 7]
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    with LLM(folder, threads=1) as llm:
        best = llm.generate(prompt, SamplingParams(max_tokens=12, temperature=0.0)).token_ids
        assert llm.generate(prompt, SamplingParams(max_tokens=12)).token_ids == best
        plain = SamplingParams(max_tokens=12, temperature=1.0, seed=0)
        assert llm.generate(prompt, plain).token_ids != best
