"""Speeds of memory are measured, with any number of threads."""

from __future__ import annotations

import pytest

from minicpm4.machine.bandwidth import copy_speed, read_speed


@pytest.mark.parametrize("measure", [copy_speed, read_speed])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_speed_is_one_of_memory(measure, threads: int) -> None:
    assert 1e6 < measure(threads, megabytes=1, seconds=0.0) < 1e15
