"""llama.cpp reads a GGUF file, or blocks of a type: the child of ``gguf_files.py``.

    python llama_cpp_reads.py REQUEST.json

The request is {"gguf", "texts", "ids", "out"}: the folder ``out`` gets the token ids of each text
("text0.npy" ...) and the logits at each of ids ("logits0.npy" ...); with "length" beside them each of ids as
the model goes on with it, up to so many tokens, the likeliest each time ("ids0.npy" ...); or {"blocks":
{TYPE: [file of raw blocks, numbers]}, "out"}: these as floats. Needs llama-cpp-python, in an environment of
its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
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
    for name, array in found:  # one at a time: logits are large
        np.save(Path(request["out"]) / f"{name}.npy", array)
    print(api.__version__)


def model(request: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    loaded = api.llama_model_load_from_file(request["gguf"].encode(), params)
    if not loaded:
        raise SystemExit("llama.cpp refuses the file")
    vocab = api.llama_model_get_vocab(loaded)
    rows, length = api.llama_vocab_n_tokens(vocab), request.get("length", 0)
    context = new_context(loaded, max(length, *map(len, request["ids"]), 1))
    for i, text in enumerate(request["texts"]):
        yield f"text{i}", tokens(vocab, text)
    for i, ids in enumerate(request["ids"]):
        if length:
            yield f"ids{i}", continued(context, ids, rows, length)
        else:
            yield f"logits{i}", logits(context, ids, rows)


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


def continued(context: Any, ids: list[int], rows: int, length: int) -> np.ndarray:
    """``ids`` and the likeliest tokens behind them, ``length`` in all; ends of a turn are tokens as any."""
    found, new = list(ids), logits(context, ids, rows)
    while len(found) < length:
        found.append(int(new[-1].argmax()))
        new = logits(context, found[-1:], rows, at=len(found) - 1)
    return np.array(found, np.int64)


def logits(context: Any, ids: list[int], rows: int, *, at: int = 0) -> np.ndarray:
    """At every position, of which the first is ``at``: (len(ids), vocabulary)."""
    if at == 0:
        api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, at + index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, 1
    code = api.llama_decode(context, batch)
    if code:
        raise SystemExit(f"llama_decode returned {code}")
    found = [
        np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (rows,)).copy() for i in range(len(ids))
    ]
    api.llama_batch_free(batch)
    return np.stack(found)


def blocks(files: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers as ggml itself unpacks them."""
    ggml = api.llama_cpp._lib  # which finds what it is linked to, too
    for name, (file, count) in files.items():
        raw = np.fromfile(file, np.uint8)
        out = np.empty(count, np.float32)
        unpack = getattr(ggml, f"dequantize_row_{name.lower().replace('_k', '_K')}")
        unpack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        unpack(raw.ctypes.data, out.ctypes.data, count)
        yield name, out


if __name__ == "__main__":
    main()
