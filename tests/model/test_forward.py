"""The forward pass: however a text is cut, on whichever table, the logits are the same."""

import numpy as np
import pytest

from minicpm4.config import SparseConfig
from minicpm4.kernels.cpu import CpuOps
from minicpm4.kernels.delegate import Delegate
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.levels import TILES, level
from tests.model.driver import Driver

TINY = SparseConfig(block_size=64, window_size=128, topk=2, dense_len=-1)
CASES = {
    "dense": None,
    "sparse": TINY,
    "sparse-lse": SparseConfig(block_size=64, window_size=128, topk=2, dense_len=-1, lse_approx=True),
    "sparse-nope": SparseConfig(block_size=64, window_size=128, topk=2, dense_len=-1, use_nope=True),
    "dense-then-sparse": SparseConfig(block_size=64, window_size=128, topk=2, dense_len=333),
}
IDS = np.random.default_rng(5).integers(4, 300, 500).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), head_dim=16, num_attention_heads=8)


@pytest.fixture(scope="module")
def weights(folder):
    return load_model(folder).weights


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [[64], [1], [333, 100], [130, 1, 1, 57]], ids=str)
def test_chunks_change_nothing(ops, weights, case, sizes):
    if ops.name == "ref" and sizes == [1]:
        sizes = [300, 1]
    whole = Driver(ops, weights, context=512, sparse=CASES[case]).feed(IDS)
    parts = Driver(ops, weights, context=512, sparse=CASES[case], seed=1).feed_chunks(IDS, sizes)
    np.testing.assert_allclose(parts, whole, atol=2e-4 * np.abs(whole).max())


class Watched(Delegate):
    def __init__(self, ops):
        super().__init__(ops)
        self.seen = []

    def layers(self, *given):
        self.seen.append("layers")
        return self._ops.layers(*given)

    def qkv(self, *given):
        self.seen.append("qkv")
        return self._ops.qkv(*given)


def test_layers_are_one_call_but_for_tables_that_look_at_single_ops(ops, weights):
    single, together = Watched(ops), Watched(ops)
    together.runs_layers = ops.runs_layers
    got = [Driver(one, weights, context=64).feed(IDS[:5]) for one in (single, together)]
    np.testing.assert_array_equal(*got)
    assert single.seen == ["qkv"] * len(weights.layers)
    assert together.seen == (["layers"] if isinstance(ops, CpuOps) else single.seen)


@pytest.mark.parametrize("case", CASES)
def test_tables_agree(ops, ref_ops, weights, case):
    got = Driver(ops, weights, context=512, sparse=CASES[case]).feed(IDS)
    want = Driver(ref_ops, weights, context=512, sparse=CASES[case]).feed(IDS)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["int8", "int4", "ternary"])
def test_prepared_weights_are_the_same_weights(ops, folder, kind):
    # Few rows and embeddings differ in their last bits; of two such values one may round to the next bf16.
    off = 1e-2 if level(ops) in TILES else 2e-4
    stored, prepared = (load_model(folder, kind, table).weights for table in (None, ops))
    for sizes in ([70], [1], [9, 40]):
        ids = IDS[: 70 if ops.name != "ref" else 20]
        want = Driver(ops, stored, context=512).feed_chunks(ids, sizes)
        got = Driver(ops, prepared, context=512).feed_chunks(ids, sizes)
        np.testing.assert_allclose(got, want, atol=off * np.abs(want).max())


def test_budget_that_covers_everything_is_dense(ops, weights):
    wide = SparseConfig(block_size=64, window_size=128, topk=8, dense_len=-1)
    sparse = Driver(ops, weights, context=512, sparse=wide).feed(IDS)
    dense = Driver(ops, weights, context=512).feed(IDS)
    np.testing.assert_allclose(sparse, dense, atol=2e-5 * np.abs(dense).max())


def test_small_budget_is_not_dense(ops, weights):
    sparse = Driver(ops, weights, context=512, sparse=TINY).feed(IDS)
    dense = Driver(ops, weights, context=512).feed(IDS)
    assert np.abs(sparse - dense).max() > 1e-3 * np.abs(dense).max()


@pytest.mark.parametrize("case", CASES)
def test_bf16_cache_is_close_in_chunks(ops, weights, case):
    whole = Driver(ops, weights, context=512, sparse=CASES[case], kv="bf16").feed(IDS)
    parts = Driver(ops, weights, context=512, sparse=CASES[case], kv="bf16").feed_chunks(IDS, [100])
    assert np.median(np.abs(parts - whole)) < 1e-2 * np.abs(whole).max()
