"""llama.cpp through llama-cpp-python's C interface: variants "fa-off" and "fa-on" (flash attention).

A depth is made cheaply: 512 tokens are read once and their state is kept; it is then loaded into a
second sequence, its positions are shifted, and its cells are given to the first one, doubling the
depth each time. What the cells hold repeats, which costs the same: every cell up to the depth is
visible to the tokens that are timed.
"""

from __future__ import annotations

import ctypes
import random
import time
from typing import Any

from protocol import serve

BATCH = 512
BASE = 512  # tokens that are really read to make a depth


class LlamaCppPeer:
    """One model, one context for each variant."""

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp

        self.api = api = llama_cpp
        self.silent = api.llama_log_callback(lambda level, text, data: None)  # kept: C holds no reference
        api.llama_log_set(self.silent, None)
        api.llama_backend_init()
        self.threads = request["threads"]
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(request["gguf"].encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp refuses the file")
        vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.ids = [random.Random(0).randrange(vocab) for _ in range(request["room"])]
        self.sequences = max(request.get("batch", 1), 2)  # making a depth takes a second one
        room = -(-(request["room"] + 1) // 256) * 256
        self.contexts = {"fa-off": self._context(room, 0), "fa-on": self._context(room, 1)}
        self.depth = dict.fromkeys(self.contexts, 0)
        self.base: dict[str, Any] = {}
        for variant in self.contexts:
            self.measure("prefill", 0, min(BASE, request["room"] - 8), variant)
            self.measure("decode", 0, 4, variant)

    def about(self) -> dict[str, Any]:
        system = self.api.llama_print_system_info().decode()
        used = " ".join(part.strip() for part in system.split("|") if part.strip())
        return {"version": self.api.__version__, "system": used, "batch": BATCH, "kv": "f16"}

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        context = self.contexts[variant]
        self._set_depth(variant, depth)
        if batch > 1:
            return self._together(variant, depth, tokens, batch)
        step = BATCH if kind == "prefill" else 1
        ids = self.ids[depth : depth + tokens]
        began = time.perf_counter()
        for start in range(0, tokens, step):
            self._decode(context, ids[start : start + step])
        seconds = time.perf_counter() - began
        self._truncate(variant, depth)
        return seconds

    def _together(self, variant: str, depth: int, tokens: int, count: int) -> float:
        """Decode ``count`` sequences at a time."""
        if depth:
            raise RuntimeError("several sequences are decoded at depth 0 only")
        batch = self.api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        began = time.perf_counter()
        for position in range(tokens):
            for index in range(count):
                batch.token[index] = self.ids[(position * count + index) % len(self.ids)]
                batch.pos[index], batch.n_seq_id[index] = position, 1
                batch.seq_id[index][0], batch.logits[index] = index, 1
            self._run(self.contexts[variant], batch)
        seconds = time.perf_counter() - began
        self.api.llama_batch_free(batch)
        for index in range(1, count):
            self.api.llama_memory_seq_rm(self._memory(variant), index, -1, -1)
        self._truncate(variant, 0)
        return seconds

    def _context(self, room: int, flash: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, BATCH, BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max, params.kv_unified = self.sequences, True
        params.flash_attn_type, params.no_perf = flash, True
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError("llama.cpp makes no context")
        return context

    def _decode(self, context: Any, ids: list[int]) -> None:
        tokens = (self.api.llama_token * len(ids))(*ids)
        self._run(context, self.api.llama_batch_get_one(tokens, len(ids)))

    def _run(self, context: Any, batch: Any) -> None:
        code = self.api.llama_decode(context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        self.api.llama_synchronize(context)

    def _memory(self, variant: str) -> Any:
        return self.api.llama_get_memory(self.contexts[variant])

    def _truncate(self, variant: str, depth: int) -> None:
        if not self.api.llama_memory_seq_rm(self._memory(variant), 0, depth, -1):
            raise RuntimeError("llama.cpp did not forget tokens")
        self.depth[variant] = depth

    def _set_depth(self, variant: str, depth: int) -> None:
        context, memory = self.contexts[variant], self._memory(variant)
        if depth < self.depth[variant]:
            self._truncate(variant, depth)
        if depth > self.depth[variant] < BASE:
            self._truncate(variant, 0)
            self._load_base(variant, min(BASE, depth))
        while (have := self.depth[variant]) < depth:
            count = min(have, depth - have)
            self._restore(context, self._state(context), 1)
            self.api.llama_memory_seq_rm(memory, 1, count, -1)
            self.api.llama_memory_seq_add(memory, 1, 0, -1, have)
            self.api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            self.api.llama_memory_seq_rm(memory, 1, -1, -1)
            self.depth[variant] += count
            if self.depth[variant] == depth:
                # Shifted keys are rotated when the next token runs: do that before the clock starts.
                self._decode(context, self.ids[:1])
                self._truncate(variant, depth)
        if depth and self.api.llama_memory_seq_pos_max(memory, 0) != depth - 1:
            raise RuntimeError("the depth was not reached")

    def _load_base(self, variant: str, count: int) -> None:
        context = self.contexts[variant]
        if variant not in self.base:
            self._decode(context, self.ids[:BASE])
            self.base[variant] = self._state(context)
        else:
            self._restore(context, self.base[variant], 0)
        self._truncate(variant, count)

    def _state(self, context: Any) -> Any:
        size = self.api.llama_state_seq_get_size(context, 0)
        buffer = (ctypes.c_uint8 * size)()
        if self.api.llama_state_seq_get_data(context, buffer, size, 0) != size:
            raise RuntimeError("llama.cpp did not save its state")
        return buffer

    def _restore(self, context: Any, state: Any, sequence: int) -> None:
        if not self.api.llama_state_seq_set_data(context, state, len(state), sequence):
            raise RuntimeError("llama.cpp did not load a state")


if __name__ == "__main__":
    install = (
        'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36'
    )
    serve(LlamaCppPeer, install)
