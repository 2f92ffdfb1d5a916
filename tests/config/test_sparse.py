"""SparseConfig: derived numbers against counting, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.config import SparseConfig
from minicpm4.errors import ConfigError


def selected(config: SparseConfig, position: int) -> int:
    """Count the blocks that one query reads, one by one, from the description of the selection."""
    visible = range(position // config.block_size + 1)
    if config.dense_len != -1 and position + 1 < config.dense_len:
        return len(visible)
    own = visible[-1]
    always = {
        b for b in visible if b < config.init_blocks or own - b < config.window_size // config.block_size
    }
    others = [b for b in visible if b not in always]
    return len(always) + len(others[: config.topk - config.init_blocks])


@st.composite
def configs(draw: st.DrawFn) -> SparseConfig:
    stride = draw(st.sampled_from([4, 8, 16]))
    block = stride * draw(st.sampled_from([1, 2, 4, 8]))
    topk = draw(st.integers(1, 12))
    return SparseConfig(
        kernel_stride=stride,
        kernel_size=stride * draw(st.integers(1, 3)),
        block_size=block,
        window_size=block * draw(st.integers(1, 6)) + draw(st.integers(0, block - 1)),
        topk=topk,
        init_blocks=draw(st.integers(0, topk)),
        dense_len=draw(st.integers(-1, 600)),
    )


@settings(max_examples=300)
@given(configs(), st.integers(0, 2000))
def test_num_selected_is_what_counting_gives(config: SparseConfig, position: int) -> None:
    assert config.num_selected(position) == selected(config, position)
    if not config.is_dense_at(position):
        assert config.num_selected(position) <= config.budget


@settings(max_examples=300)
@given(configs(), st.integers(1, 20), st.data())
def test_room_for_fewer_blocks_changes_no_choice_among_them(
    full: SparseConfig, blocks: int, data: st.DataObject
) -> None:
    """The first blocks, the window and how many others are chosen are the same at every position."""
    less = full.within(blocks)
    position = data.draw(st.integers(0, full.block_size * blocks - 1))
    visible = position // full.block_size + 1
    assert less.budget <= 2 * blocks and less.within(blocks) == less
    assert less.num_selected(position) == full.num_selected(position)
    for name in ("init_blocks", "local_blocks"):
        assert min(getattr(less, name), visible) == min(getattr(full, name), visible)


def test_defaults_are_the_papers() -> None:
    config = SparseConfig()
    assert config.budget == 96 and config.local_blocks == 32 and config.compressed_per_block == 4
    assert config.coarse_per_block == 1
    assert config.num_selected(32767) == 96
    assert config.is_dense_at(8190) and not config.is_dense_at(8191)
    assert not SparseConfig(dense_len=-1).is_dense_at(0)


BAD = [
    ({"topk": 0}, "sparse_config.topk = 0 is outside 1 to 16777215"),
    ({"kernel_stride": -16}, "sparse_config.kernel_stride = -16 is outside 1 to 16777215"),
    ({"block_size": 1 << 30}, r"sparse_config.block_size = \d+ is outside 1 to 16777215"),
    ({"init_blocks": 65}, "sparse_config.init_blocks = 65 is outside 0 to 64"),
    ({"init_blocks": -1}, "sparse_config.init_blocks = -1 is outside"),
    ({"dense_len": -2}, "sparse_config.dense_len = -2 is outside -1 to"),
    ({"kernel_size": 40}, "sparse_config.kernel_size = 40 is not a multiple of kernel_stride = 16"),
    ({"block_size": 72}, "sparse_config.block_size = 72 is not a multiple of kernel_stride = 16"),
    ({"window_size": 32}, "window_size = 32 is below block_size = 64. a query's own block"),
    ({"block_size": 96, "lse_approx": True}, "lse_approx needs block_size = 96 and 4 x kernel_stride = 64"),
    ({"window": 64}, "sparse_config has an unknown key 'window'. did you mean 'window_size'"),
    ({"topk": 6.5}, "sparse_config.topk = 6.5 is not a valid int"),
    ({"topk": True}, "sparse_config.topk = True is not a valid int"),
    ({"use_nope": 1}, "sparse_config.use_nope = 1 is not a valid bool"),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_bad_values_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseConfig.from_mapping(table)


def test_what_is_not_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="sparse_config is a list, not a table of settings"):
        SparseConfig.from_mapping([])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 100_000_000])
def test_both_limits_are_named(value: int) -> None:
    with pytest.raises(ConfigError, match=f"sparse_config.topk = {value} is outside 1 to 16777215"):
        SparseConfig(topk=value)
