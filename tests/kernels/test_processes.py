"""Forked processes and refused threads: right results or one clear error, never a hang or a crash."""

import subprocess
import sys

import pytest

pytest.importorskip("minicpm4._cpu")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no limits")

START = """
import os, sys, threading
import numpy as np
from minicpm4.errors import UnsupportedError
from minicpm4.formats.quant import PackedTensor, QuantSpec
from minicpm4.kernels.layer_weights import Linear
from minicpm4.kernels.cpu import CpuOps

random = np.random.default_rng(0)
w, x = (random.standard_normal(shape).astype(np.float32) for shape in ((512, 256), (16, 256)))
linear = Linear(weight=PackedTensor(shape=w.shape, spec=QuantSpec(kind="f32"), codes=w))
ops = CpuOps(4)
truth = ops.linear(x, linear)
"""

FORKS = """
def many_threads():
    barrier, right = threading.Barrier(8), []
    def work():
        barrier.wait()
        right.append(all(np.array_equal(ops.linear(x, linear), truth) for _ in range(20)))
    threads = [threading.Thread(target=work) for _ in range(8)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    return len(right) == 8 and all(right)

for _ in range(40):
    child = os.fork()
    if child == 0:
        os._exit(0 if many_threads() else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"a child ended with status {status}"
"""

WHILE_BUSY = """
busy = threading.Event()
def work():
    while not busy.is_set():
        ops.linear(x, linear)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(ops.linear(x, linear), truth) else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"a child ended with status {status}"
busy.set()
"""

REFUSED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    CpuOps(1000)
except UnsupportedError as error:
    assert "of 1000 threads" in str(error), error
else:
    raise AssertionError("1000 stacks in 2 GiB")
assert np.array_equal(ops.linear(x, linear), truth)
"""

AT_EXIT = """
import time
def work():
    while True:
        ops.linear(x, linear)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"a child ended with status {status}"
"""


@pytest.mark.parametrize(
    "script",
    [FORKS, WHILE_BUSY, REFUSED, AT_EXIT],
    ids=["threads of a child", "busy", "refused", "threads at the interpreter's exit"],
)
def test_children_and_refusals(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
