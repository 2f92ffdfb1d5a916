"""Sparse attention with gradients: the truth's blocks and outputs, and gradients by finite differences."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from minicpm4.config import SparseConfig  # noqa: E402
from minicpm4.kernels import autograd, sparse_grad  # noqa: E402
from minicpm4.kernels.autograd import TorchKV, TorchOps  # noqa: E402
from minicpm4.kernels.ref import RefOps  # noqa: E402
from tests.contract.paged import SMALL, Paged, config  # noqa: E402

torch.set_num_threads(1)
TINY = SparseConfig(kernel_size=2, kernel_stride=1, block_size=2, window_size=2, topk=2, dense_len=-1)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lse": {"lse_approx": True},
    "nope": {"use_nope": True},
    "dense-then-sparse": {"dense_len": 100},
    "no-first-block": {"init_blocks": 0},
    "only-first-blocks": {"init_blocks": 3},
    "long-kernels": {"kernel_size": 64, "lse_approx": True},
    "no-kernel-yet": {"kernel_size": 128, "lse_approx": True},
    "wide": {"window_size": 80, "topk": 1},
}
LENGTHS = [333, 1, 81, 16 * 11]


def tensors(world: Paged, dtype: Any = torch.float64) -> tuple[Any, Any, TorchKV, Any]:
    """q, the step, k and v in a TorchKV, all of one world; q, k, v are leaves with gradients."""
    q, k, v = (
        torch.from_numpy(world.rows(x)).to(dtype).requires_grad_() for x in (world.q, world.k, world.v)
    )
    step = world.step()
    arrays = {name: torch.from_numpy(getattr(step, name)) for name in ("positions", "cos", "sin")}
    kv = TorchKV(world.hkv, world.d)
    TorchOps().append(k, v, kv, step)
    return q, replace(step, **arrays), kv, (q, k, v)


def masked(q: Any, k: Any, v: Any, allowed: Any) -> Any:
    """Attention by its definition, n x n: allowed (n, hkv, n)."""
    n, hq, d = q.shape
    grouped = q.reshape(n, k.shape[1], -1, d)
    scores = torch.einsum("nhgd,thd->nhgt", grouped, k) / d**0.5
    weights = scores.masked_fill(~allowed[:, :, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("nhgt,thd->nhgd", weights, v).reshape(n, hq * d)


def allowed_tokens(world: Paged, selection: Any) -> Any:
    """What each row may read of the batch's rows, (n, hkv, n)."""
    n, size = sum(world.lengths), world.sparse.block_size
    allowed = torch.zeros(n, world.hkv, n, dtype=torch.bool)
    start = 0
    for length in world.lengths:
        for p in range(length):
            for h in range(world.hkv):
                count = int(selection.counts[start + p, h])
                chosen = selection.blocks[start + p, h, : max(count, 0)].tolist()
                read = [t for t in range(p + 1) if count < 0 or t // size in chosen]
                allowed[start + p, h, start + torch.tensor(read)] = True
        start += length
    return allowed


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)], ids=str)
def test_blocks_and_outputs_are_the_truths(case: str, heads: tuple[int, int]) -> None:
    world = Paged(7, config(SMALL, **CASES[case]), LENGTHS, heads, 16)
    ref, pages = RefOps(), world.filled(RefOps())
    want = ref.select(world.rows(world.q), pages, world.step())
    q, step, kv, _ = tensors(world)
    got = TorchOps().select(q, kv, step)
    np.testing.assert_array_equal(got.counts.numpy(), want.counts)
    np.testing.assert_array_equal(got.blocks.numpy(), want.blocks)
    out = TorchOps().attend(q, kv, step, got).detach().numpy()
    truth = ref.attend(world.rows(world.q), pages, world.step(), want)
    np.testing.assert_allclose(out, truth, atol=1e-6 * np.abs(truth).max())


@pytest.mark.parametrize("group", range(1, 9))
def test_every_group_size_in_float32(group: int) -> None:
    world = Paged(group, config(SMALL, lse_approx=group % 2 == 0), [150, 97], (2 * group, 2), 16)
    pages, ops = world.filled(RefOps()), TorchOps()
    q, step, kv, _ = tensors(world, torch.float32)
    want = RefOps().select(world.rows(world.q), pages, world.step())
    np.testing.assert_array_equal(ops.select(q, kv, step).blocks.numpy(), want.blocks)
    truth = RefOps().attention(world.rows(world.q), pages, world.step())
    out = ops.attention(q, kv, step).detach().numpy()
    np.testing.assert_allclose(out, truth, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("case", ["plain", "lse", "nope", "dense-then-sparse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_are_those_of_the_definition(case: str, dtype: Any) -> None:
    world = Paged(3, config(SMALL, **CASES[case]), [190, 5, 130], (6, 2), 8)
    q, step, kv, leaves = tensors(world, dtype)
    selection = TorchOps().select(q, kv, step)
    out = TorchOps().attend(q, kv, step, selection)
    weights = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((out * weights).sum(), leaves)
    truth = masked(*leaves, allowed_tokens(world, selection))
    want = torch.autograd.grad((truth * weights).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=(1e-12 if dtype == torch.float64 else 2e-5) * float(b.abs().max())
        )


@pytest.mark.parametrize(
    ("case", "heads"),
    [({}, (1, 1)), ({"lse_approx": True}, (6, 2)), ({"use_nope": True}, (8, 1)), ({"dense_len": 9}, (3, 1))],
    ids=str,
)
def test_gradcheck(case: dict[str, Any], heads: tuple[int, int]) -> None:
    world = Paged(5, replace(TINY, **case), [12, 2, 9], heads, 2)
    _, step, _, leaves = tensors(world)
    ops = TorchOps()

    def run(q: Any, k: Any, v: Any) -> Any:
        kv = TorchKV(world.hkv, world.d)
        ops.append(k, v, kv, step)
        return ops.attention(q, kv, step)

    # Along random directions: every input by itself takes a minute, and the test above has every gradient.
    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("length", [64, 61])
def test_all_blocks_chosen_is_dense(length: int) -> None:
    """The rows of the last block over every block, by inverted selection, against torch's dense attention."""
    size, hq, hkv, d = 8, 6, 2, 8
    generator = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(length, h, d, dtype=torch.float64, generator=generator).requires_grad_()
        for h in (hq, hkv, hkv)
    )
    rows = slice(56, length)
    every = torch.arange(8, dtype=torch.int32).expand(length - 56, hkv, 8)
    pages = [
        torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 64 - length)).reshape(8, size, hkv, d) for x in (k, v)
    ]
    sparse = sparse_grad.sparse_attention(q[rows], *pages, every, torch.arange(56, length))
    batch = [x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))]
    dense = torch.nn.functional.scaled_dot_product_attention(*batch, is_causal=True)[0].transpose(0, 1)[rows]
    torch.testing.assert_close(sparse, dense)
    got, want = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (sparse, dense))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_budget_that_covers_everything_has_dense_gradients() -> None:
    world = Paged(8, config(SMALL, topk=12), [16 * 13 + 5, 40], (4, 2), 8)
    q, step, kv, leaves = tensors(world)
    sparse = TorchOps().attention(q, kv, step)
    TorchOps().append(*leaves[1:], kv, step)
    dense = TorchOps().attention(q, kv, replace(step, sparse=None))
    got, want = (torch.autograd.grad(y.square().sum(), leaves) for y in (sparse, dense))
    for a, b in zip((sparse, *got), (dense, *want), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scores", [1, 3000])
def test_how_work_is_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    world = Paged(9, config(SMALL, lse_approx=True), [300, 150], (4, 2), 8)
    q, step, kv, leaves = tensors(world)
    whole = TorchOps().attention(q, kv, step)
    want = torch.autograd.grad(whole.square().sum(), leaves)
    monkeypatch.setattr(sparse_grad, "SCORES", {"cpu": scores})
    again = TorchKV(world.hkv, world.d)
    TorchOps().append(*leaves[1:], again, step)
    parts = TorchOps().attention(q, again, step)
    got = torch.autograd.grad(parts.square().sum(), leaves)
    for a, b in zip((parts, *got), (whole, *want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_scores_far_above_the_guess() -> None:
    """A row's own token and its first score 120 below the largest: beyond what float32's exp can hold."""
    world = Paged(10, config(SMALL), [150], (4, 2), 8)
    world.q[0][..., 0], world.k[0][..., 0] = 10 * np.sqrt(8), -12.0
    world.k[0][1::16, :, 0] = 0.0
    pages = world.filled(RefOps())
    truth = RefOps().attention(world.rows(world.q), pages, world.step())
    q, step, kv, leaves = tensors(world, torch.float32)
    out = TorchOps().attention(q, kv, step)
    np.testing.assert_allclose(out.detach().numpy(), truth, atol=1e-5 * np.abs(truth).max())
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), leaves))


def test_ties_go_to_the_lower_block() -> None:
    world = Paged(13, config(SMALL, topk=4), [16 * 20], (4, 2), 16)
    world.k[0][:] = world.k[0][:1]
    q, step, kv, _ = tensors(world, torch.float32)
    assert TorchOps().select(q, kv, step).blocks[-1, 0].tolist() == [0, 1, 2, 3, 18, 19]


def test_values_that_are_not_finite_are_no_crash() -> None:
    world = Paged(17, config(SMALL), [16 * 12], (2, 1), 16)
    world.k[0][40:60] = np.nan
    q, step, kv, _ = tensors(world)
    out = TorchOps().attention(q, kv, step)
    out.sum().backward()  # no error
    assert torch.isfinite(out[:40]).all() and not torch.isfinite(out[64:]).all()


class Largest(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


def test_memory_grows_with_chosen_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of forward or backward holds more than 8 bytes for each pair."""
    monkeypatch.setattr(sparse_grad, "SCORES", {"cpu": 1 << 14})
    sizes, saved = [], []
    for length in (1000, 4000):
        world = Paged(1, config(SMALL, topk=8), [length], (4, 2), 8)
        q, step, kv, _ = tensors(world, torch.float32)
        kept: list[int] = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x
        )
        with Largest() as largest, keep:
            TorchOps().attention(q, kv, step).sum().backward()
        sizes.append(largest.bytes)
        saved.append(sum(kept))
        pairs = length * world.hkv * world.sparse.budget
        assert largest.bytes <= 8 * pairs < length**2
    assert sizes[1] < 5 * sizes[0] and saved[1] < 5 * saved[0]


def test_a_gpu_without_triton_says_once_that_it_is_slower(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autograd, "find_spec", lambda name: None)
    autograd._say_no_triton.cache_clear()
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    for _ in range(2):
        assert autograd._sparse_attention_for(on_gpu) is sparse_grad.sparse_attention
    assert caplog.text.count("Triton is missing") == 1
