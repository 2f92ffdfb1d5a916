"""llama.cpp reads a GGUF file, or blocks of a type: the child of ``gguf_files.py``.

    python llama_cpp_reads.py REQUEST.json

The request is {"gguf", "texts", "ids", "out"}: the file ``out`` gets the token ids of each text ("text0" ...)
and the logits at each of ids ("logits0" ...); or {"blocks": {TYPE: [file of raw blocks, numbers]}, "out"}:
these as floats. Needs llama-cpp-python, in an environment of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

THREADS = 1  # its threads spin where others share the cores
F32 = 0  # type of cached keys and values


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    silent = api.llama_log_callback(lambda level, text, data: None)  # kept: C holds no reference
    api.llama_log_set(silent, None)
    found = blocks(request["blocks"]) if "blocks" in request else model(request)
    np.savez(request["out"], **found)
    print(api.__version__)


def model(request: dict[str, Any]) -> dict[str, np.ndarray]:
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    loaded = api.llama_model_load_from_file(request["gguf"].encode(), params)
    if not loaded:
        raise SystemExit("llama.cpp refuses the file")
    vocab = api.llama_model_get_vocab(loaded)
    context = new_context(loaded, max(map(len, request["ids"]), default=1))
    found = {f"text{i}": tokens(vocab, text) for i, text in enumerate(request["texts"])}
    return found | {
        f"logits{i}": logits(context, ids, api.llama_vocab_n_tokens(vocab))
        for i, ids in enumerate(request["ids"])
    }


def new_context(loaded: Any, room: int) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = -(-(room + 1) // 256) * 256
    params.n_threads = params.n_threads_batch = THREADS
    params.type_k = params.type_v = F32
    params.flash_attn_type, params.no_perf = 0, True
    context = api.llama_init_from_model(loaded, params)
    if not context:
        raise SystemExit("llama.cpp makes no context")
    return context


def tokens(vocab: Any, text: str) -> np.ndarray:
    raw = text.encode()
    room = (api.llama_token * (len(raw) + 8))()
    count = api.llama_tokenize(vocab, raw, len(raw), room, len(room), True, True)
    return np.array(room[:count], np.int64)


def logits(context: Any, ids: list[int], rows: int) -> np.ndarray:
    """At every position: (len(ids), vocabulary)."""
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, 1
    code = api.llama_decode(context, batch)
    if code:
        raise SystemExit(f"llama_decode returned {code}")
    found = [
        np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (rows,)).copy() for i in range(len(ids))
    ]
    api.llama_batch_free(batch)
    return np.stack(found)


def blocks(files: dict[str, str]) -> dict[str, np.ndarray]:
    """Numbers as ggml itself unpacks them."""
    ggml, found = api.llama_cpp._lib, {}  # which finds what it is linked to, too
    for name, (file, count) in files.items():
        raw = np.fromfile(file, np.uint8)
        out = np.empty(count, np.float32)
        unpack = getattr(ggml, f"dequantize_row_{name.lower().replace('_k', '_K')}")
        unpack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        unpack(raw.ctypes.data, out.ctypes.data, count)
        found[name] = out
    return found


if __name__ == "__main__":
    main()
