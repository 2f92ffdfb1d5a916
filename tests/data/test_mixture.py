"""Batches are a pure function of seed and step; every token of an epoch comes once; documents never mix."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from minicpm4.data.mixture import MixturePart, Stream, buckets, exact_shares
from minicpm4.data.shards import ShardSet
from minicpm4.errors import ConfigError
from tests.data.sets import make_set


def stream(data: ShardSet, **changed: int) -> Stream:
    settings = {"seed": 1, "tokens": 32, "context": 12, **changed}
    return Stream([MixturePart(name="a", data=data, share=1.0)], **settings)


def test_an_epoch_has_every_token_once(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [5, 30, 7, 1, 53])
    found = stream(data)
    ids = np.concatenate([found.batch(i).ids for i in range(6)])[: 2 * data.num_tokens]
    for epoch in ids.reshape(2, -1):
        assert sorted(epoch) == list(range(data.num_tokens))
    assert not np.array_equal(*ids.reshape(2, -1))


def test_a_batch_is_of_several_documents_however_long(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [4000, 4000, 4000, 4000])
    found = [stream(data, tokens=120).batch(i) for i in range(20)]
    assert np.mean([len(set(batch.ids // 4000)) for batch in found]) > 3


def test_any_order_of_calls_and_any_number_of_processes_give_the_same(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", list(range(3, 40)))
    straight = [stream(data).batch(i) for i in range(8)]
    one = stream(data)
    for step in (7, 0, 3, 3, 6):
        assert np.array_equal(one.batch(step).ids, straight[step].ids)
        assert np.array_equal(one.batch(step).targets, straight[step].targets)
    for rank in range(2):
        half = stream(data, rank=rank, processes=2)
        assert all(np.array_equal(half.batch(i).ids, straight[2 * i + rank].ids) for i in range(4))
    assert not np.array_equal(stream(data, seed=2).batch(0).ids, straight[0].ids)


def test_targets_follow_within_a_document_and_never_cross_one(tmp_path: Path) -> None:
    lengths = [5, 30, 7, 1, 53]
    data = make_set(tmp_path / "s", lengths)
    lasts = set(np.cumsum(lengths) - 1)
    for step in range(3):
        batch = stream(data).batch(step)
        for a, b in zip(batch.cu_rows[:-1], batch.cu_rows[1:], strict=True):
            assert 0 < b - a <= 12
            assert np.array_equal(batch.positions[a:b], np.arange(b - a))
            for token, target in zip(batch.ids[a:b], batch.targets[a:b], strict=True):
                assert target == (-1 if token in lasts else token + 1)


def test_only_what_is_learnt_is_a_target(tmp_path: Path) -> None:
    batch = stream(make_set(tmp_path / "s", [50, 50], learn=True)).batch(0)
    kept = batch.targets[batch.targets >= 0]
    assert len(kept) and np.all(kept % 3 == 0)


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ([0.1, 0.9], Fraction(1, 10)),
        ([0.5 / 3, 0.5], Fraction(1, 4)),
        ([3e-6, 1 - 3e-6], Fraction(3, 10**6)),
        ([4e-7, 1.0], Fraction(1, 2_500_001)),  # less than a half of 2**-20
        ([2e-7, 2e-7], Fraction(1, 2)),
        ([1e-300, 1e-300], Fraction(1, 2)),
    ],
)
def test_a_share_is_the_fraction_it_was_written_for_however_small(
    shares: list[float], wanted: Fraction
) -> None:
    found = exact_shares([("a", shares[0]), ("b", shares[1])], 1 << 22)
    assert found == [wanted, 1 - wanted]


def test_a_share_that_no_batch_shows_is_refused(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [50] * 9)
    parts = [MixturePart(name=name, data=data, share=share) for name, share in (("a", 1.0), ("b", 4e-7))]
    with pytest.raises(ConfigError, match="the share of b is less than one token of a batch of 30"):
        Stream(parts, seed=0, tokens=30, context=16)
    with pytest.raises(ConfigError, match="must be positive"):
        exact_shares([("a", 1.0), ("b", -4e-7)], 30)
    assert exact_shares([("a", 1.0), ("b", 0.0)], 30) == [1, 0]  # left out on purpose


def test_shares_are_kept_to_a_token(tmp_path: Path) -> None:
    one, other = make_set(tmp_path / "a", [50] * 9), make_set(tmp_path / "b", [20] * 9, first=1000)
    parts = [MixturePart(name="a", data=one, share=3.0), MixturePart(name="b", data=other, share=1.0)]
    mixed = Stream(parts, seed=0, tokens=30, context=16)
    count = sum(int((mixed.batch(i).ids >= 1000).sum()) for i in range(10))
    assert count == 75 and all(len(mixed.batch(i).ids) == 30 for i in range(10))


def test_buckets_have_equal_shares_of_tokens(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [3] * 50 + [40] * 4 + [90])
    parts = buckets(MixturePart(name="s", data=data, share=0.5), [10, 60, 200], 100)
    assert [part.share for part in parts] == pytest.approx([0.5 / 3] * 3)
    assert [set(data.lengths[part.documents]) for part in parts] == [{3}, {40}, {90}]


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a has no documents"):
        stream(make_set(tmp_path / "s", []))
