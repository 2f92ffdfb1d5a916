"""Folders of `minicpm4 convert --to llama` in transformers' LlamaForCausalLM: the logits of MiniCPM here.

Needs transformers beside torch: `make test-transformers` installs it. Quantised folders:
test_convert_transformers_codes.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from minicpm4 import LLM  # noqa: E402
from minicpm4.cli import run  # noqa: E402
from tests.cli.test_convert_llama import MODELS  # noqa: E402
from tests.fixtures.random_checkpoint import make_checkpoint  # noqa: E402

TEXT = "Hello, world! naïve 今天 it's done, and 12345 more words follow.\n" * 3


@pytest.mark.parametrize("more", [[], ["--weights", "int4", "--group", "32", "--method", "rtn"]])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_minicpm(
    name: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = make_checkpoint(tmp_path / "model", seed=3, dtype="bfloat16", head_dim=16, **MODELS[name])
    out, same = tmp_path / "out", tmp_path / "same"
    assert run(["convert", str(model), str(out), "--to", "llama", *more]) == 0
    assert run(["convert", str(model), str(same), "--to", "hf", *(more or ["--weights", "auto"])]) == 0
    with LLM(str(same), context=250, kv="float32", backend="ref") as llm:
        ids = llm.tokenizer.encode(TEXT)
        expected = llm.logits(ids)
    # As config.json says: what it names must change no weight.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).float().eval()
    assert type(theirs) is transformers.LlamaForCausalLM
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert transformers.AutoTokenizer.from_pretrained(out).encode(TEXT) == ids
