"""transformers on torch: variants "dynamic" and "static" (which cache), attention by torch's sdpa.

A depth is made by putting random keys and values into the cache.
"""

from __future__ import annotations

import time
from typing import Any

from protocol import serve


class TransformersPeer:
    """A LlamaForCausalLM from a folder in the dtype that the request names."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch, self.library = torch, transformers
        torch.set_num_threads(request["threads"])
        torch.manual_seed(0)
        self.dtype = getattr(torch, request["dtype"])
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            request["folder"], dtype=self.dtype, attn_implementation="sdpa"
        ).eval()
        self.config = self.model.config
        shape = (request.get("batch", 1), request["room"])
        self.ids = torch.randint(0, self.config.vocab_size, shape)
        with torch.inference_mode():
            self.measure("prefill", 0, 64, "dynamic")
            self.measure("decode", 64, 4, "dynamic")

    def about(self) -> dict[str, Any]:
        versions = f"transformers {self.library.__version__}, torch {self.torch.__version__}"
        return {"version": versions, "dtype": str(self.dtype), "attention": "sdpa"}

    def measure(self, kind: str, depth: int, tokens: int, variant: str, batch: int = 1) -> float:
        with self.torch.inference_mode():
            cache = self._cache(depth, tokens, variant, batch)
            step = tokens if kind == "prefill" else 1
            began = time.perf_counter()
            for start in range(depth, depth + tokens, step):
                ids = self.ids[:batch, start : start + step]
                self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - began

    def _cache(self, depth: int, tokens: int, variant: str, batch: int) -> Any:
        static = variant == "static"
        make = self.library.StaticCache if static else self.library.DynamicCache
        size = {"max_cache_len": depth + tokens} if static else {}
        cache = make(config=self.config, **size)
        if not depth:
            return cache
        for layer in range(self.config.num_hidden_layers):
            shape = (batch, self.config.num_key_value_heads, depth, self.config.head_dim)
            keys, values = (self.torch.randn(shape, dtype=self.dtype) for _ in range(2))
            cache.update(keys, values, layer)
        return cache


if __name__ == "__main__":
    serve(TransformersPeer, "pip install torch==2.13.0 transformers safetensors")
