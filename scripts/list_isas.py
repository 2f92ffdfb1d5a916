"""Print the levels of kernels that run on this machine, emulated ones included: what there is to test.

``--other``: without the best, which runs unless another is named, so that ``make test`` has tested it.
"""

import sys

from minicpm4 import _cpu

levels = _cpu.isa_levels()
print(*(levels[:-1] if sys.argv[1:] == ["--other"] else levels), *_cpu.emulated_levels())
