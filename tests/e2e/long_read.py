"""Run as a process of its own, so that its peak memory is that of one engine: read, decode, report.

Usage: python long_read.py FOLDER TOKENS NEW WEIGHTS TOPK WINDOW
"""

import json
import sys
from pathlib import Path

import numpy as np

from minicpm4 import LLM, SamplingParams


def main(folder: str, tokens: int, new: int, weights: str, topk: int, window: int) -> None:
    sparse = {"topk": topk, "window_size": window}
    llm = LLM(folder, weights=weights, attention="sparse", sparse=sparse, context=tokens + new, max_batch=1)
    refs = Path("/proc/self/clear_refs")
    if refs.exists():  # the peak begins anew: what is mapped while loading is let go, and no part of the plan
        refs.write_text("5")
    ids = np.random.default_rng(0).integers(0, llm.config.vocab_size, tokens).tolist()
    out = llm.generate(ids, SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True))
    m = out.metrics
    report = {
        "planned": llm.plan.total,
        "peak": m.peak_memory,
        "attention": m.attention,
        "blocks_read_share": m.blocks_read_share,
        "new_tokens": m.new_tokens,
        "prefill_tokens_per_s": m.prompt_tokens / m.prefill_s,
        "decode_tokens_per_s": m.new_tokens / m.decode_s,
        "formats": llm.description,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
