"""OpenVINO's CPU plugin on the graph that OpenVINO GenAI builds from the GGUF file: variants "" (numbers
between operations as the plugin likes, bf16 where the processor has it) and "float32".

A depth is made by putting random keys and values into the model's state. The graph is sliced so that
only the last token's logits are computed, as GenAI does itself when it generates.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from pathlib import Path
from typing import Any

from protocol import serve

CHUNK = 512
DEEP = 1 << 16  # from here on a compiled model is dropped after use: nothing else gives its gigabytes back
# What OpenVINO does unasked (activations in 8 bits for each 32 columns, keys and values in 8 bits), and
# the same without these roundings.
SETTINGS: dict[str, dict[str, str]] = {
    "8-bit": {},
    "16-bit": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "bf16"},
}


class OpenVinoPeer:
    """One compiled model, with the settings that the request names."""

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy
        import openvino

        self.numpy, self.openvino = numpy, openvino
        self.core = openvino.Core()
        self.model = self.core.read_model(str(_graph(request)))
        _last_token_only(self.model)
        common = {"INFERENCE_NUM_THREADS": request["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self.settings = common | SETTINGS[request["precision"]]
        self.vocab = int(self.model.get_results()[0].get_output_partial_shape(0)[2].get_length())
        self.random = numpy.random.default_rng(0)
        self.compiled: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        self.size = 0
        self._use("")
        # Before anything has run, a state's shape is (batch, kv heads, tokens, head size) of no tokens.
        _, self.heads, _, self.size = self.states[0].state.shape
        self._warm_up("")

    def _use(self, variant: str) -> None:
        """Go on with a variant, compiled when it is first asked for; others forget their tokens."""
        for other, request in self.requests.items():
            if other != variant:
                request.reset_state()
        if new := variant not in self.requests:
            hint = {"INFERENCE_PRECISION_HINT": "f32"} if variant else {}
            self.compiled[variant] = self.core.compile_model(self.model, "CPU", self.settings | hint)
            self.requests[variant] = self.compiled[variant].create_infer_request()
        self.run = self.requests[variant]
        self.states = self.run.query_state()
        if new and self.size:
            self._warm_up(variant)

    def _warm_up(self, variant: str) -> None:
        self.measure("prefill", 0, 64, variant)
        self.measure("decode", 64, 4, variant)

    def about(self) -> dict[str, Any]:
        names = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")
        values = {name.lower(): str(self.compiled[""].get_property(name)) for name in names}
        return {"version": self.openvino.get_version(), **values}

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        self._use(variant)
        self._set_depth(depth, batch)
        step = CHUNK if kind == "prefill" else 1
        ids = self.random.integers(0, self.vocab, (batch, tokens))
        began = time.perf_counter()
        for start in range(0, tokens, step):
            self._step(ids[:, start : start + step], depth + start)
        seconds = time.perf_counter() - began
        if depth >= DEEP:
            self._forget()
        return seconds

    def _forget(self) -> None:
        """Drop everything compiled; it is compiled again when it is next used."""
        del self.run, self.states
        self.requests.clear()
        self.compiled.clear()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def _step(self, ids: Any, past: int) -> None:
        batch, count = ids.shape
        self.run.infer(
            {
                "input_ids": ids,
                "attention_mask": self.numpy.ones((batch, past + count), self.numpy.int64),
                "position_ids": self.numpy.arange(past, past + count)[None].repeat(batch, axis=0),
                "beam_idx": self.numpy.arange(batch, dtype=self.numpy.int32),
            }
        )

    def _set_depth(self, depth: int, batch: int) -> None:
        self.run.reset_state()
        if not depth:
            return
        # Layers never meet, so all may have the same ones.
        values = self.random.standard_normal((batch, self.heads, depth, self.size), self.numpy.float32)
        for state in self.states:
            state.state = self.openvino.Tensor(values)
        self._check(depth)

    def _check(self, depth: int) -> None:
        found = self.states[0].state.shape[2]
        if found != depth:
            raise RuntimeError(f"the state holds {found} tokens, not {depth}")


def _graph(request: dict[str, Any]) -> Path:
    """The path of the graph, made from the GGUF file the first time."""
    gguf = Path(request["gguf"])
    folder = Path(request["work"]) / f"openvino-{gguf.stem}"
    graph = folder / "openvino_model.xml"
    if not graph.exists():
        import openvino_genai

        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "model.gguf"
        link.unlink(missing_ok=True)
        os.symlink(gguf.resolve(), link)
        # The graph is saved beside the file. The pipeline itself is not needed, and on some shapes cannot be
        # made: it then fails after saving.
        with contextlib.suppress(RuntimeError):
            openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
        if not graph.exists():
            raise RuntimeError("OpenVINO GenAI makes no graph from the GGUF file")
    return graph


def _last_token_only(model: Any) -> None:
    """Slice what enters the last product to its last token."""
    import numpy
    from openvino import opset13

    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last, end, one = (numpy.array([value], numpy.int64) for value in (-1, 2**62, 1))
    sliced = opset13.slice(node.input_value(0), last, end, one, one)
    node.input(0).replace_source_output(sliced.output(0))
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    serve(OpenVinoPeer, "pip install openvino-genai==2026.4.1.0")
