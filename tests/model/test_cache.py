"""The page pool: its size is what was planned, and a copied page is a whole page."""

from dataclasses import fields

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.errors import ConfigError
from minicpm4.kernels.pages import page_arrays
from minicpm4.kernels.step import KVLayer
from minicpm4.model.cache import KVPool, page_nbytes
from tests.model.test_rotary import CONFIG

SPARSE = SparseConfig(block_size=64, window_size=128, topk=2)
COARSE = SparseConfig(block_size=64, window_size=128, topk=2, lse_approx=True)


@pytest.mark.parametrize("kv", ["bf16", "int8", "float32"])
@pytest.mark.parametrize("sparse", [None, SPARSE, COARSE])
def test_planned_page_size_is_true(kv, sparse):
    pool = KVPool(CONFIG, num_pages=5, kv=kv, sparse=sparse)
    assert pool.nbytes == 5 * page_nbytes(CONFIG, page_size=64, kv=kv, sparse=sparse)


@pytest.mark.parametrize("kv", ["bf16", "int8", "float32"])
def test_copy_page_copies_every_part(kv):
    pool = KVPool(CONFIG, num_pages=3, kv=kv, sparse=COARSE)
    layer = pool.layer(0)
    parts = [getattr(layer, f.name) for f in fields(KVLayer)]
    parts = [part for part in parts if isinstance(part, np.ndarray)]
    assert len(parts) == {"bf16": 6, "int8": 8, "float32": 4}[kv]
    for part in parts:
        part[1] = np.random.default_rng(0).integers(-9, 9, part[1].shape).astype(part.dtype)
    pool.copy_page(1, 2)
    for part in parts:
        assert part[2].any()
        np.testing.assert_array_equal(part[1], part[2])


def test_int8_needs_even_sizes():
    with pytest.raises(ConfigError, match="keeps pairs of numbers: head size 64 or block_size 33 is odd"):
        page_arrays("int8", heads=1, d=64, page_size=33, sparse=None)


def test_layers_are_views():
    pool = KVPool(CONFIG, num_pages=2)
    pool.layer(0).keys[0, 0, 0, 0] = 7
    assert pool.layer(0).keys[0, 0, 0, 0] == 7


def test_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="kv = 'fp8' is not a cache format"):
        KVPool(CONFIG, num_pages=1, kv="fp8")
