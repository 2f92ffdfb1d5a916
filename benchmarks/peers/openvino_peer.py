"""OpenVINO's CPU plugin on the graph that OpenVINO GenAI builds from the GGUF file.

A depth is made by putting random keys and values into the model's state. The graph is sliced so that
only the last token's logits are computed, as GenAI does itself when it generates.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from protocol import serve

CHUNK = 512
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
        core = openvino.Core()
        model = core.read_model(str(_graph(request)))
        _last_token_only(model)
        self.settings = SETTINGS[request["precision"]]
        common = {"INFERENCE_NUM_THREADS": request["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = core.compile_model(model, "CPU", common | self.settings)
        self.run = self.compiled.create_infer_request()
        self.states = self.run.query_state()
        self.vocab = int(model.get_results()[0].get_output_partial_shape(0)[2].get_length())
        # Before anything has run, a state's shape is (batch, kv heads, tokens, head size) of no tokens.
        _, self.heads, _, self.size = self.states[0].state.shape
        self.random = numpy.random.default_rng(0)
        self.measure("prefill", 0, 64, "")
        self.measure("decode", 64, 4, "")

    def about(self) -> dict[str, Any]:
        names = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")
        values = {name.lower(): str(self.compiled.get_property(name)) for name in names}
        return {"version": self.openvino.get_version(), **values}

    def measure(self, kind: str, depth: int, tokens: int, variant: str) -> float:
        self._set_depth(depth)
        step = CHUNK if kind == "prefill" else 1
        ids = self.random.integers(0, self.vocab, (1, tokens))
        began = time.perf_counter()
        for start in range(0, tokens, step):
            self._step(ids[:, start : start + step], depth + start)
        return time.perf_counter() - began

    def _step(self, ids: Any, past: int) -> None:
        count = ids.shape[1]
        self.run.infer(
            {
                "input_ids": ids,
                "attention_mask": self.numpy.ones((1, past + count), self.numpy.int64),
                "position_ids": self.numpy.arange(past, past + count)[None],
                "beam_idx": self.numpy.zeros(1, self.numpy.int32),
            }
        )

    def _set_depth(self, depth: int) -> None:
        self.run.reset_state()
        if not depth:
            return
        for state in self.states:
            shape = (1, self.heads, depth, self.size)
            values = self.random.standard_normal(shape, self.numpy.float32)
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
