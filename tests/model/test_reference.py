"""Logits against torch and transformers in float32 (benchmarks/reference/ made the fixture)."""

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.loading import load_model
from tests.fixtures.random_cases import CASES, token_ids, weights_crc
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.levels import HALVES, level
from tests.model.driver import Driver

REFERENCE = np.load(Path(__file__).parent.parent / "fixtures" / "random_reference.npz")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp(request.param), **CASES[request.param])
    return request.param, load_model(folder).weights


def bound(ops, name):
    """What logits may be off by, in units of the largest: float32, except where a table says otherwise.

    Levels of HALVES round both sides of products with bf16 weights to bf16: seen 8e-3.
    """
    rounds = level(ops) in HALVES and CASES[name].get("dtype") == "bfloat16"
    return 2e-2 if rounds else 1e-4


def test_logits_are_the_reference(ops, case):
    name, weights = case
    ids, rows, want = (REFERENCE[f"{name}_{part}"] for part in ("ids", "rows", "logits"))
    np.testing.assert_array_equal(ids, token_ids(name))
    got = Driver(ops, weights, context=len(ids)).feed(ids.tolist())[rows]
    np.testing.assert_allclose(got, want, atol=bound(ops, name) * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_reference(name):
    assert weights_crc(name) == int(REFERENCE[f"{name}_crc"])


def test_token_by_token_is_the_reference(ops, case):
    name, weights = case
    ids, rows, want = (REFERENCE[f"{name}_{part}"] for part in ("ids", "rows", "logits"))
    got = Driver(ops, weights, context=len(ids)).feed_chunks(ids.tolist(), [60, 1])[rows]
    np.testing.assert_allclose(got, want, atol=bound(ops, name) * max(1, np.abs(want).max()))
