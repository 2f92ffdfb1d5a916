"""The loss in chunks: equal to the whole, to torch's, and its gradients to finite differences."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from minicpm4.errors import ConfigError  # noqa: E402
from minicpm4.train.loss import distribution_loss, next_token_loss  # noqa: E402

torch.set_num_threads(1)


def case(
    n: int = 37, width: int = 12, vocab: int = 29, dtype: Any = torch.float64
) -> tuple[Any, Any, Any, Any]:
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, width, dtype=dtype, generator=generator).requires_grad_()
    head = torch.randn(vocab, width, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(0, vocab, (n,), generator=generator)
    targets[::5] = -1
    return hidden, head, targets, torch.rand(n, dtype=dtype, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_chunks_are_the_whole(chunk: int, z_loss: float) -> None:
    hidden, head, targets, weight = case()
    logits = 0.7 * hidden @ head.T
    kept = targets >= 0
    nll = functional.cross_entropy(logits[kept], targets[kept], reduction="none")
    want = (weight[kept] * (nll + z_loss * logits[kept].logsumexp(1) ** 2)).sum()
    got = next_token_loss(hidden, head, targets, scale=0.7, weight=weight, z_loss=z_loss, chunk=chunk)
    torch.testing.assert_close(got.total, want)
    torch.testing.assert_close(got.nll, (weight[kept] * nll).sum())
    torch.testing.assert_close(got.count, weight[kept].sum())
    for a, b in zip(*(torch.autograd.grad(3 * x, (hidden, head)) for x in (got.total, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    hidden, head, targets, weight = case(9, 5, 7)

    def run(hidden: Any, head: Any) -> Any:
        return next_token_loss(hidden, head, targets, scale=0.5, weight=weight, z_loss=0.3, chunk=4).total

    assert torch.autograd.gradcheck(run, (hidden, head))


def test_a_frozen_head_has_no_gradient() -> None:
    hidden, head, targets, _ = case()
    next_token_loss(hidden, head.detach(), targets).total.backward()
    assert hidden.grad is not None and head.grad is None
    with torch.no_grad():
        assert not next_token_loss(hidden, head, targets).total.requires_grad


def test_a_batch_without_targets_counts_nothing() -> None:
    hidden, head, targets, _ = case()
    found = next_token_loss(hidden, head, torch.full_like(targets, -1))
    found.total.backward()
    assert float(found.count) == float(found.total.detach()) == 0.0
    assert float(hidden.grad.abs().max()) == float(head.grad.abs().max()) == 0.0


def test_autocast_multiplies_in_bf16_and_sums_in_float32() -> None:
    hidden, head, targets, _ = case(200, 64, 500, torch.float32)
    exact = next_token_loss(hidden, head, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = next_token_loss(hidden, head, targets, chunk=64)
    assert got.total.dtype == torch.float32
    assert 0 < abs(float((got.total - exact.total).detach())) < 0.02 * float(exact.total.detach())
    for a, b in zip(*(torch.autograd.grad(x.total, (hidden, head)) for x in (got, exact)), strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.03


def test_a_target_outside_the_vocabulary_is_refused() -> None:
    hidden, head, targets, _ = case()
    targets[3] = 29
    with pytest.raises(ConfigError, match="target 29 is outside the vocabulary of 29"):
        next_token_loss(hidden, head, targets)


def test_distributions_are_learnt_as_torch_learns_them() -> None:
    hidden, head, _, weight = case()
    wanted = torch.randn(37, 29, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    logits = 0.7 * hidden @ head.T
    want = (weight * functional.cross_entropy(logits, wanted, reduction="none")).sum()
    got, best = distribution_loss(hidden, head, wanted, weight, scale=0.7)
    torch.testing.assert_close(got.total, want)
    assert best.tolist() == logits.argmax(1).tolist()
    for a, b in zip(*(torch.autograd.grad(3 * x, (hidden, head)) for x in (got.total, want)), strict=True):
        torch.testing.assert_close(a, b)
