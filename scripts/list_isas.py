"""Print the levels of kernels that run on this machine, emulated ones included: what there is to test."""

from minicpm4 import _cpu

print(*_cpu.isa_levels(), *_cpu.emulated_levels())
