"""Run as a process of its own, so that its memory is that of one engine: a pool full of random pages, one
chunk of 512 tokens at the end of it, all of whose logits are looked at, and a text of which drafts are made.

Usage: python deep_step.py MODEL CONTEXT ATTENTION WEIGHTS KV
Prints what was planned and what was taken at most, in bytes of memory that is not mapped from files.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from minicpm4.engine.drafter import Wish
from minicpm4.engine.load import inspect
from minicpm4.engine.options import CHUNK, EngineOptions
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sampler import SampleState, sample
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.engine.suffix import SuffixDrafter
from minicpm4.formats.bf16 import f32_to_bf16

PIECE = 1 << 18


def status(name):
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024


def random_like(rng, array, scales):
    values = rng.standard_normal(array.size, np.float32)
    if array.dtype == np.float32:
        return np.abs(values) / 1000 if scales else values
    if array.dtype == np.uint16:
        return f32_to_bf16(values)
    return (values * (30 if array.dtype == np.int8 else 3000)).astype(array.dtype)


def fill(pool):
    rng = np.random.default_rng(0)
    for name, array in pool._arrays.items():
        flat = array.reshape(-1)
        for start in range(0, flat.size, PIECE):
            part = flat[start : start + PIECE]
            part[:] = random_like(rng, part, "scales" in name)


def main(model, context, attention, weights, kv):
    options = EngineOptions(
        attention=attention, weights=weights, kv=kv, context=context, max_batch=1, threads=2, backend="cpu"
    )
    found = inspect(model, options)
    planned = found.plan.needed + status("RssAnon")
    engine = found.build()[0]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: what is mapped while loading is let go
    runner, pages = engine._runner, list(range(found.plan.num_pages))
    fill(runner._pool)
    rng = np.random.default_rng(0)
    tokens = rng.permutation(min(4096, found.config.vocab_size)).tolist()  # some numbers, each kept once
    text = [tokens[i] for i in rng.integers(0, len(tokens), context)]
    sequence = Sequence(0, text, context + 1, pages=pages)
    drafter = SuffixDrafter()  # what "auto" is
    drafter.guess([Wish(sequence, 4, lambda chances: True)])
    result = runner.execute(StepPlan([Span(sequence, context - CHUNK, CHUNK, "all")]))
    state = SampleState(SamplingParams(temperature=1.0, top_p=0.9), np.random.default_rng(0))
    for _, logits in result.logit_blocks(0, CHUNK):
        sample(found.host_ops, logits[0], state)
    peak = status("VmHWM") - status("RssFile")
    print(json.dumps({"planned": planned, "peak": peak, "plan": str(found.plan)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
