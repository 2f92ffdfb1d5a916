"""Print the instruction sets for which the extension has kernels that run on this machine."""

from minicpm4 import _cpu

print(*_cpu.isa_levels())
