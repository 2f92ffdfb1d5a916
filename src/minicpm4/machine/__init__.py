"""Facts of the machine: what its processor is called, how many cores and how much memory this process may
use, how fast it reads, and how much of it others use. Each is found out here alone."""

from minicpm4.machine.cpu import (
    MAX_THREADS,
    cpu_name,
    cpu_quota,
    default_threads,
    logical_cores,
    physical_cores,
    total_cores,
    watch_others,
)
from minicpm4.machine.memory import available_memory, give_back_freed, human, peak_memory, resident_memory

__all__ = [
    "MAX_THREADS",
    "available_memory",
    "cpu_name",
    "cpu_quota",
    "default_threads",
    "give_back_freed",
    "human",
    "logical_cores",
    "peak_memory",
    "physical_cores",
    "resident_memory",
    "total_cores",
    "watch_others",
]
