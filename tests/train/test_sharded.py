"""FSDP2 on two processes: layers gather their parameters when they run, and gradients are one process's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minicpm4.train.footprint import parameters
from minicpm4.train.saved import saved

torch = pytest.importorskip("torch")
from torch import multiprocessing as mp  # noqa: E402

from tests.train.batches import batch  # noqa: E402
from tests.train.sharded import LARGE, MODES, begin_of_two, fail_of_two, loss_of, modules, one_of_two  # noqa: E402


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for number, mode in enumerate(MODES):
        model, more = modules(mode)
        (sum(loss_of(model, more, batch([37 + rank, 22], 50, seed=rank)) for rank in range(2)) / 2).backward()
        with np.load(tmp_path / f"{number}.npz") as found:
            for name, parameter in [*model.named_parameters(), *more.named_parameters()]:
                want = parameter.grad.numpy()
                np.testing.assert_allclose(found[name], want, atol=1e-5 * np.abs(want).max(), err_msg=name)


def test_a_process_never_holds_more_of_a_new_model_than_its_part_and_a_tensor(tmp_path: Path) -> None:
    mp.spawn(begin_of_two, (str(tmp_path),), nprocs=2)
    whole = 4 * parameters(LARGE).total
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(one["own"] for one in found) == whole > 200e6
    assert all(one["grown"] < 0.7 * whole for one in found), found


def test_a_checkpoint_that_one_process_cannot_write_is_none_and_all_are_told(tmp_path: Path) -> None:
    mp.spawn(fail_of_two, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [first[0], first[2]] == [second[0], second[2]] == ["saved", "saved"]
    assert "another process could not" in first[1] and "No space left on device" in second[1]
    assert [one.step for one in saved(tmp_path / "run")] == [1, 3]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-000000001", "step-000000003"]
