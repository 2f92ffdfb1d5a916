"""Gradients of sparse attention, on the GPU or in Triton's interpreter, against those of sparse_grad.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minicpm4.kernels.gpu import sparse_train
from minicpm4.kernels.sparse_grad import sparse_attention
from tests.gpu.arrays import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def inputs(
    rows: int, heads: tuple[int, int], d: int, size: int, budget: int, dtype: torch.dtype
) -> list[Tensor]:
    """Rows at the end of a document; each reads the first block, its own, and some between."""
    torch.manual_seed(rows + d)
    hq, hkv = heads
    n = size * (budget + 3) + rows
    last = torch.arange(n - rows, n)
    count = -(-n // size)
    q = torch.randn(rows, hq, d)
    keys, values = torch.randn(count, size, hkv, d), torch.randn(count, size, hkv, d)
    lists = []
    for row in range(rows):
        own = int(last[row]) // size
        between = [1 + torch.randperm(own - 1)[: budget - 2] for _ in range(hkv)]
        lists.append(torch.stack([torch.tensor([0, *sorted(x.tolist()), own]) for x in between]))
    arrays = [x.to(dtype).to(DEVICE) for x in (q, keys, values)]
    return [*arrays, torch.stack(lists).int().to(DEVICE), last.to(DEVICE)]


SHAPES = [(33, (2, 1), 16, 16, 3), (20, (12, 2), 80, 16, 4), (40, (6, 2), 32, 32, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "heads", "d", "size", "budget"), SHAPES)
def test_results_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    heads: tuple[int, int],
    d: int,
    size: int,
    budget: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(sparse_train, "CHUNK", 16)  # so that a block has several
    *arrays, blocks, last = inputs(rows, heads, d, size, budget, dtype)
    dy = torch.randn(arrays[0].shape, device=DEVICE)
    found, expected = [], []
    for attention, kind, results in (
        (sparse_train.gpu_sparse_attention, dtype, found),
        (sparse_attention, torch.float64, expected),
    ):
        own = [x.detach().to(kind).requires_grad_() for x in arrays]
        y = attention(*own, blocks, last)
        y.backward(dy.to(y.dtype))
        results += [y, *(x.grad for x in own)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        error = torch.linalg.norm(a.double() - b) / torch.linalg.norm(b)
        assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def test_every_pair_is_in_one_chunk() -> None:
    blocks = torch.stack([torch.randperm(9)[:4].sort().values for _ in range(60)]).view(30, 2, 4).int()
    order, units, begins, ends = sparse_train._chunks(blocks, 9)
    taken = []
    for unit, begin, end in zip(units.tolist(), begins.tolist(), ends.tolist(), strict=True):
        if unit < 18:
            assert 0 < end - begin <= sparse_train.CHUNK
            for pair in order[begin:end].tolist():
                assert int(blocks.flatten()[pair]) + 9 * (pair // 4 % 2) == unit
                taken.append(pair)
    assert sorted(taken) == list(range(240))
