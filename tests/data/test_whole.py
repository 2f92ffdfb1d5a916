"""Whole pieces: never cut, each once in an epoch, shares kept, batches of a block nearly level; and all of it
a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.data.batch import Batch
from minicpm4.data.batching import DocumentPiece as Placed
from minicpm4.data.batching import batches_in_block, level, spread
from minicpm4.data.mixture import MixturePart, Stream, buckets
from minicpm4.data.shards import ShardSet
from minicpm4.errors import ConfigError
from tests.data.sets import make_set

CONTEXT = 16
PLACE = {"seed": 0, "tokens": 32, "context": CONTEXT}


def rows(batch: Batch) -> list[list[int]]:
    """Tokens of each piece."""
    return [batch.ids[a:b].tolist() for a, b in zip(batch.cu_rows[:-1], batch.cu_rows[1:], strict=True)]


def pieces(data: ShardSet, context: int = CONTEXT) -> set[tuple[int, ...]]:
    """What a set's whole pieces are."""
    found = set()
    for document, length in enumerate(data.lengths.tolist()):
        tokens = data.read(document, 0, length)[0].tolist()
        found |= {tuple(tokens[at : at + context]) for at in range(0, length, context)}
    return found


MIXES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([0.2, 0.5, 1.0]), st.booleans()
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30)
@given(MIXES, st.integers(CONTEXT, 80), st.integers(0, 9))
def test_every_token_comes_once_an_epoch_and_shares_are_kept(mix: list, tokens: int, seed: int) -> None:
    with TemporaryDirectory() as folder:
        sets = [make_set(Path(folder) / str(i), mix[i][0], first=1000 * (i + 1)) for i in range(len(mix))]
        parts = [
            MixturePart(name=str(i), data=data, share=share, whole=whole)
            for i, (data, (_, share, whole)) in enumerate(zip(sets, mix, strict=True))
        ]
        mixed = Stream(parts, seed=seed, tokens=tokens, context=CONTEXT)
        longest = max((min(max(lengths), CONTEXT) for lengths, _, whole in mix if whole), default=0)
        steps = 2 * batches_in_block(longest, tokens) if longest else 9
        seen = [row for step in range(steps) for row in rows(mixed.batch(step))]
        total = sum(share for _, share, _ in mix)
        for i, (_, share, whole) in enumerate(mix):
            own = [row for row in seen if row[0] // 1000 == i + 1]
            counts = Counter(token for row in own for token in row)
            assert not whole or {tuple(row) for row in own} <= pieces(sets[i])
            # No token a second time before all have come once; so many tokens as the share says.
            times = [counts[1000 * (i + 1) + token] for token in range(sets[i].num_tokens)]
            assert max(times) - min(times) <= 1
            assert abs(sum(times) - steps * tokens * share / total) <= 1 + longest


def test_a_whole_piece_is_never_cut(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [5, 40, 16, 1, 33, 9])
    found = Stream(
        [MixturePart(name="s", data=data, share=1, whole=True)], seed=3, tokens=20, context=CONTEXT
    )
    seen = Counter(tuple(row) for step in range(52) for row in rows(found.batch(step)))
    assert set(seen) == pieces(data) and max(seen.values()) - min(seen.values()) <= 1


def test_cut_parts_fill_the_batches_to_one_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chats = make_set(tmp_path / "c", rng.integers(1, 100, 200).tolist(), whole=True)
    text = make_set(tmp_path / "t", [3000] * 3, first=20000)
    parts = [MixturePart(name="c", data=chats, share=0.5), MixturePart(name="t", data=text, share=0.5)]
    found = Stream(parts, seed=0, tokens=256, context=100)
    sizes = [len(found.batch(step).ids) for step in range(batches_in_block(99, 256))]
    assert max(sizes) - min(sizes) <= 1
    assert abs(sum(sizes) - 256 * len(sizes)) <= 99


def test_without_cut_parts_batches_are_nearly_level(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", np.random.default_rng(0).integers(1, 100, 300).tolist(), whole=True)
    found = Stream([MixturePart(name="s", data=data, share=1)], seed=0, tokens=800, context=100)
    sizes = [len(found.batch(step).ids) for step in range(batches_in_block(99, 800))]
    assert max(sizes) - min(sizes) <= 10 and abs(np.mean(sizes) - 800) <= 13


def test_buckets_bring_equal_shares_of_tokens(tmp_path: Path) -> None:
    lengths = [3] * 100 + [40] * 4 + [90]
    data = make_set(tmp_path / "s", lengths)
    parts = buckets(MixturePart(name="s", data=data, share=1.0), [10, 60, 200], 100)
    found = Stream(parts, seed=0, tokens=300, context=100)
    counts = Counter(len(row) for step in range(40) for row in rows(found.batch(step)))
    assert set(counts) == {3, 40, 90}
    assert all(abs(length * count - 4000) <= length for length, count in counts.items())


def test_documents_that_are_too_long_are_left_out_of_buckets_too(tmp_path: Path) -> None:
    part = MixturePart(
        name="s", share=1.0, data=make_set(tmp_path / "s", [3] * 90 + [40] * 9 + [90] * 3, whole=True)
    )
    parts = buckets(part, [10, 60, 80], 64)
    assert [part.share for part in parts] == [0.5, 0.5]
    found = Stream(parts, seed=0, tokens=300, context=64)
    assert found.left_out == {"s[0]": 0, "s[1]": 3}
    assert {len(row) for step in range(9) for row in rows(found.batch(step))} == {3, 40}
    with pytest.raises(ConfigError, match="fits a context of 2 tokens"):
        Stream(buckets(part, [10, 60], 2), seed=0, tokens=300, context=2)


def test_a_resumed_stream_and_other_processes_get_the_same_batches(tmp_path: Path) -> None:
    chats = make_set(tmp_path / "c", list(range(1, 16)) * 9, learn=True, whole=True)
    text = make_set(tmp_path / "t", [70, 30, 20], first=9000)
    parts = [MixturePart(name="c", data=chats, share=0.3), MixturePart(name="t", data=text, share=0.7)]
    place = {"seed": 5, "tokens": 24, "context": CONTEXT}
    unbroken = Stream(parts, **place)
    straight = [unbroken.batch(step) for step in range(120)]
    for step in (119, 0, 64, 63, 7):
        resumed = Stream(parts, **place).batch(step)
        for field in ("ids", "targets", "positions", "cu_rows"):
            assert np.array_equal(getattr(resumed, field), getattr(straight[step], field))
    for rank in range(3):
        own = Stream(parts, **place, rank=rank, processes=3)
        assert all(np.array_equal(own.batch(i).ids, straight[3 * i + rank].ids) for i in range(40))


def test_too_long_documents_of_a_whole_set_are_left_out_and_counted(tmp_path: Path) -> None:
    data = make_set(tmp_path / "s", [5, CONTEXT + 1, CONTEXT, 90], whole=True)
    found = Stream([MixturePart(name="s", data=data, share=1)], **PLACE)
    assert found.left_out == {"s": 2}
    assert {len(row) for step in range(30) for row in rows(found.batch(step))} == {5, CONTEXT}
    with pytest.raises(ConfigError, match="no document of s fits a context of 4 tokens"):
        Stream([MixturePart(name="s", data=data, share=1)], seed=0, tokens=32, context=4)
    with pytest.raises(ConfigError, match="less than one token of a batch of 32"):
        Stream([MixturePart(name=n, data=data, share=s) for n, s in (("a", 1), ("b", 0.01))], **PLACE)
    with pytest.raises(ConfigError, match="a batch of 9 tokens cannot hold a piece of 16"):
        Stream([MixturePart(name="s", data=data, share=1)], seed=0, tokens=9, context=CONTEXT)


def test_a_batch_without_pieces_teaches_nothing(tmp_path: Path) -> None:
    shares = {"a": 0.34, "b": 0.33, "c": 0.33}  # by their remainders some block has 63 pieces for 64 batches
    sets = {name: make_set(tmp_path / name, [7] * 5, first=100, whole=True) for name in shares}
    parts = [MixturePart(name=name, data=sets[name], share=share) for name, share in shares.items()]
    found = Stream(parts, seed=0, tokens=7, context=7)
    empty = [batch for batch in map(found.batch, range(256)) if batch.ids[0] == 0]
    assert empty and all(batch.targets.tolist() == [-1] and batch.cu_rows[-1] == 1 for batch in empty)


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 500)), max_size=4),
)
def test_levelling_uses_all_and_is_level(filled: list[int], given_parts: list[tuple[int, int]]) -> None:
    stretches = [(start, start + size) for start, size in given_parts]
    poured = level(filled, stretches, range(len(stretches)))
    for i, (start, stop) in enumerate(stretches):
        assert sum(amounts[i] for amounts in poured) == stop - start
    after = [full + sum(amounts.values()) for full, amounts in zip(filled, poured, strict=True)]
    assert min(min(amounts.values(), default=0) for amounts in poured) >= 0
    raised = [new for new, old in zip(after, filled, strict=True) if new > old]
    assert not raised or max(raised) - min(after) <= 1


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 12), st.integers(0, 3))
def test_spreading_keeps_every_piece_and_no_group_is_far_ahead(
    sizes: list[int], count: int, seed: int
) -> None:
    given_pieces = [Placed(part=0, document=i, start=0, stop=size) for i, size in enumerate(sizes)]
    groups = spread(given_pieces, count, (seed,))
    assert len(groups) == count
    assert sorted(p.document for group in groups for p in group) == list(range(len(sizes)))
    totals = [sum(p.stop for p in group) for group in groups]
    assert max(totals) - min(totals) <= max(sizes, default=0)
    assert groups == spread(given_pieces, count, (seed,))
