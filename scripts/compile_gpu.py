"""Compile the GPU's kernels for some architectures, without a GPU, and print what each takes.

The op table runs on CPU tensors of a model's shapes, but a launch compiles (PTX by Triton, then ptxas)
instead of running: so kernels are checked in the very variants that are launched. Exit code 1 where one does
not compile, or takes more shared memory than the architecture has; what spills registers is marked.

    python scripts/compile_gpu.py [--arch 80 --arch 90] [--quick]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB a block may have
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32",
    torch.int16: "*i16", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "num_ctas")


class Recorder:
    """Stands in for launches: compiles each variant once."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.seen: set[str] = set()
        self.bad = 0

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        names = kernel.arg_names
        given = dict(zip(names, args, strict=False)) | kwargs
        signature, constants, attrs = {}, {}, {}
        for index, (name, param) in enumerate(zip(names, kernel.params, strict=True)):
            value = given[name]
            if param.is_constexpr or value is None:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attrs[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    attrs[(index,)] = [["tt.divisibility", 16]]
        label = f"{kernel.__name__} {list(signature.values())} {constants} {options}"
        if label in self.seen:
            return
        self.seen.add(label)
        self.compile(kernel, signature, constants, attrs, options)

    def compile(self, kernel: Any, signature: Any, constants: Any, attrs: Any, options: Any) -> None:
        kinds = " ".join(dict.fromkeys(kind for kind in signature.values() if kind.startswith("*")))
        shown = {k: v for k, v in constants.items() if isinstance(v, int) and not isinstance(v, bool)}
        flags = " ".join(k for k, v in constants.items() if v is True)
        sizes = " ".join(f"{k}={v}" for k, v in shown.items())
        what = f"sm_{self.arch} {kernel.__name__} {sizes} {flags} [{kinds}]"
        try:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
            made = triton.compile(source, target=GPUTarget("cuda", self.arch, 32), options=options)
        except Exception as error:
            self.bad += 1
            print(f"FAILED {what}")
            cause: BaseException | None = error
            while cause is not None:
                print(f"  {type(cause).__name__}: {str(cause)[-600:]}", flush=True)
                cause = cause.__cause__
            return
        registers, stack = usage(made.asm["cubin"])
        shared = made.metadata.shared / 1024
        wrong = shared > SHARED.get(self.arch, 99)
        self.bad += wrong
        mark = "BAD" if wrong else "spills" if stack > 64 else "ok"
        print(f"{mark} {what}: {registers} registers, {stack} spilled, {shared:.1f} KB shared", flush=True)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack (what spilled)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[-1][0]), int(found[-1][1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, action="append", help="such as 80, 90 (default), 100")
    parser.add_argument("--quick", action="store_true", help="one shape")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 is set: kernels would not be compiled")
    archs = given.arch or [90]
    if len(archs) > 1:  # each by a process of its own, all at once
        quick = ["--quick"] if given.quick else []
        parts = [subprocess.Popen([sys.executable, __file__, "--arch", str(arch), *quick]) for arch in archs]
        return max([abs(part.wait()) for part in parts])
    recorder = Recorder(archs[0])
    JITFunction.run = lambda self, *args, **kwargs: recorder(self, *args, **kwargs)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.gpu.variants import run_variants

    np.seterr(all="ignore")
    run_variants(quick=given.quick)
    print(f"sm_{archs[0]}: {len(recorder.seen)} variants, {recorder.bad} bad")
    return 1 if recorder.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
