"""Engine options: which attention they mean, and what each refusal says."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from minicpm4.config import SparseConfig
from minicpm4.engine.llm import LLM
from minicpm4.engine.options import EngineOptions, resolve_sparse
from minicpm4.errors import ConfigError
from tests.engine.test_plan import config

OWN = SparseConfig(topk=8, window_size=128, dense_len=500)


def resolved(own: SparseConfig | None, **options: Any) -> SparseConfig | None:
    return resolve_sparse(EngineOptions(**options), config(sparse_config=own))


def test_auto_is_dense_without_settings() -> None:
    assert resolved(None) is None


def test_auto_takes_the_checkpoints_settings_with_their_dense_len() -> None:
    assert resolved(OWN) == OWN


def test_auto_is_dense_when_the_context_never_reaches_dense_len() -> None:
    assert resolved(OWN, context=499) is None
    assert resolved(OWN, context=500) == OWN


def test_a_mapping_changes_single_settings_of_the_checkpoint() -> None:
    assert resolved(OWN, sparse={"topk": 4}) == SparseConfig(topk=4, window_size=128, dense_len=500)


def test_a_config_replaces_the_checkpoints() -> None:
    assert resolved(OWN, sparse=SparseConfig(topk=3, dense_len=9)) == SparseConfig(topk=3, dense_len=9)


def test_dense_means_never() -> None:
    assert resolved(OWN, attention="dense") is None


@pytest.mark.parametrize(
    ("sparse", "dense_len"),
    [
        (None, -1),
        ({"topk": 4}, -1),
        ({"dense_len": 700}, 700),
        (SparseConfig(topk=2), -1),
        (SparseConfig(dense_len=7), 7),
    ],
)
def test_sparse_means_always_unless_the_caller_set_dense_len(sparse: Any, dense_len: int) -> None:
    found = resolved(OWN, attention="sparse", sparse=sparse)
    assert found is not None and found.dense_len == dense_len


def test_the_default_length_counts_where_the_caller_gives_it() -> None:
    """It was taken for "not given" once, for it equals the default."""
    for given in (SparseConfig(dense_len=8192), {"dense_len": 8192}):
        found = resolved(OWN, attention="sparse", sparse=given, context=20000)
        assert found is not None and found.dense_len == 8192
    for left_open in (SparseConfig(), {"dense_len": None}, None):
        found = resolved(OWN, attention="sparse", sparse=left_open, context=20000)
        assert found is not None and found.dense_len == -1


def test_what_is_resolved_says_from_where_on() -> None:
    found = resolved(SparseConfig(), context=20000)
    assert found is not None and found.dense_len == 8192


def test_sparse_without_any_settings_takes_defaults() -> None:
    assert resolved(None, attention="sparse") == SparseConfig(dense_len=-1)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"weights": "int5"}, r"weights = 'int5' is not a weight format\. did you mean 'int"),
    ({"attention": "spars"}, r"attention = 'spars' is not a choice\. did you mean 'sparse'\?"),
    ({"kv": "fp16"}, r"kv = 'fp16' is not a choice\. did you mean 'bf16'\?"),
    ({"backend": 3}, r"backend = 3 is not a name"),
    ({"context": 0}, r"context = 0 is outside 1 to"),
    ({"context": 10.0}, r"context = 10\.0 is not an integer"),
    ({"threads": -1}, r"threads = -1 is outside 1 to"),
    ({"threads": 1025}, r"threads = 1025 is outside 1 to 1024"),
    ({"max_batch": 0}, r"max_batch = 0 is outside 1 to"),
    ({"chunk": 0}, r"chunk = 0 is outside 1 to"),
    ({"prefix_cache": "no"}, r"prefix_cache = 'no' is not true or false"),
    ({"seed": "x"}, r"seed = 'x' is not an integer"),
    ({"attention": "dense", "sparse": {"topk": 3}}, r"'dense' and settings of sparse attention exclude"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("sparse", "message"),
    [
        ({"tpok": 3}, r"sparse has an unknown key 'tpok'\. did you mean 'topk'\?"),
        ({"topk": 0}, r"sparse_config\.topk = 0 is outside 1 to"),
        ([3], r"sparse is a list\. give a SparseConfig or a mapping"),
    ],
)
def test_wrong_sparse_settings_are_refused(sparse: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(None, sparse=sparse)


def test_llm_and_options_have_the_same_defaults() -> None:
    shown = {n: p.default for n, p in inspect.signature(LLM.__init__).parameters.items()}
    for name in EngineOptions.__dataclass_fields__:
        assert shown[name] == getattr(EngineOptions(), name), name


@pytest.mark.parametrize(
    ("draft", "near"),
    [
        ("suffix:x", "suffix:shared"),
        ("suffix:SHARED", "suffix:shared"),
        ("MTP", "mtp"),
        ("sufix", "suffix"),
        ("model:", "model:NAME"),
    ],
)
def test_the_nearest_drafter_is_named(draft: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"is no drafter. did you mean '{near}'"):
        EngineOptions(draft=draft)
