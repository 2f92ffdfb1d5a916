"""The optimiser on sharded parameters (FSDP2's DTensors) in two processes: the same weights as in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
# Run as `python -c` twice: rank, folder, kind.
WORKER = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from minicpm4.train.optim import Optimiser
from minicpm4.train.session import World
from tests.train.test_optim import give_gradients, parameters
from tests.train.test_optim_sharded import config, steps

torch.set_num_threads(1)
rank, folder, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = parameters()
named = {n: nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for n, p in whole.items()}

def share(step):
    give_gradients(whole, step)
    for name, parameter in named.items():
        parameter.grad = distribute_tensor(whole[name].grad, mesh, [Shard(0)])

optimiser = Optimiser(named.items(), config(kind))
norms = steps(named, optimiser, range(3), share)
state = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in optimiser.tensors().items()}
optimiser = Optimiser(named.items(), config(kind))
optimiser.load_tensors(state)  # as a checkpoint does: whole tensors, whatever the number of processes
norms += steps(named, optimiser, range(3, 5), share)
found = {n: p.detach().full_tensor() for n, p in named.items()}
if rank == 0:
    np.savez(f"{folder}/found.npz", norms=norms, **{n: t.numpy() for n, t in found.items()})
World(rank=rank, size=2).leave()
"""


def config(kind: str) -> object:
    from minicpm4.train.settings import OptimConfig

    return OptimConfig(kind=kind)


def steps(named: dict, optimiser: object, numbers: range, give: object) -> list[float]:
    """Take steps with clipped gradients; return their norms."""
    from minicpm4.train.optim import clip_gradients

    norms = []
    for step in numbers:
        give(step)
        norms.append(clip_gradients(named.values(), 1.0))
        optimiser.set_rate(0.01 * (1 + step))
        optimiser.step()
    return norms


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_two_processes_give_the_weights_of_one(tmp_path: Path, kind: str) -> None:
    from minicpm4.train.optim import Optimiser
    from tests.train.test_optim import give_gradients, parameters

    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(rank), str(tmp_path), kind], cwd=ROOT
        )
        for rank in (0, 1)
    ]
    named = parameters()
    norms = steps(named, Optimiser(named.items(), config(kind)), range(5), lambda s: give_gradients(named, s))
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    found = np.load(tmp_path / "found.npz")
    assert found["norms"] == pytest.approx(norms, rel=1e-6)
    for name, parameter in named.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), parameter.detach(), rtol=1e-5, atol=1e-6)
