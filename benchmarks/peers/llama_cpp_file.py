"""llama.cpp's own GGUF file of the same original, rounded by its own quantiser, for `quantisation.py --also`.

Runs in an environment of its own (llama-cpp-python, which `make test-gguf` puts in build/llama), not in ours:

    .venv/bin/minicpm4 convert FOLDER/original FOLDER/original.gguf
    PYTHON benchmarks/peers/llama_cpp_file.py FOLDER/original.gguf OUT.gguf --type Q4_K_M

FOLDER is the `--work` of quantisation.py, which writes the original. All is as llama.cpp's `llama-quantize`
has it when nothing but a type is said: no importance matrix, other types for embeddings, head and some
matrices of layers where its recipe has them, and types of blocks that fit where rows do not fill one of 256.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path, help="GGUF file of floats")
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q4_K_M")
    args = parser.parse_args()

    import llama_cpp as api

    api.llama_backend_init()
    params = api.llama_model_quantize_default_params()
    if params.ftype not in TYPES.values() or params.imatrix:
        raise SystemExit(f"this llama-cpp-python has other defaults than the script knows: {params.ftype}")
    params.ftype = TYPES[args.type]
    began = time.monotonic()
    failed = api.llama_model_quantize(
        str(args.original).encode(), str(args.out).encode(), ctypes.byref(params)
    )
    if failed:
        raise SystemExit(f"llama.cpp refuses: code {failed}")
    print(f"{args.type} by llama.cpp ({api.__version__}) in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
