"""The processes of a run: those that torchrun has started, or one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from minicpm4.errors import CheckpointError

__all__ = ["World"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among all: of torchrun, or alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """Join the processes that torchrun has started; alone where it has not."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank=dist.get_rank(), size=size)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return [float(x) for x in tensor]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, error: Exception | None) -> None:
        """Go on together or not at all: raise ``error``, and CheckpointError where another process has
        one."""
        failed = self.sum([float(error is not None)], self.device)[0]
        if error is not None:
            raise error
        if failed:
            raise CheckpointError("another process could not do its part", "its own message says why")

    def first(self, action: Callable[[], object]) -> None:
        """Have the first process do ``action`` while the others wait; what it raises of OSError and
        CheckpointError, all do."""
        error: Exception | None = None
        if self.rank == 0:
            try:
                action()
            except (OSError, CheckpointError) as found:
                error = found
        self.agree(error)

    def leave(self, code: int = 0) -> None:
        """Part from the other processes. With others, this ends the process at once, with exit code
        ``code``."""
        if self.size == 1:
            return
        dist.barrier()
        dist.destroy_process_group()
        # Without this, gloo's threads (torch 2.13) abort one exit in ten while the interpreter is taken down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
