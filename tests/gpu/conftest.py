"""Without a GPU these tests run Triton's interpreter: the same kernels on the CPU, on small shapes.

Kernels learn of it when they are imported, so the variable is set before.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

if find_spec("triton") is None or find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra "gpu" is not installed
elif not any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
