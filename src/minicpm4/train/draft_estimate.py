"""What the training of a head that drafts takes: memory, disk, operations. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from minicpm4.formats.names import expected_tensors
from minicpm4.model.head_layout import HeadLayout
from minicpm4.train.footprint import matrices

__all__ = ["HeadCost", "answer_flops", "head_cost"]

F32 = 4
LIVE = (
    14  # arrays of a row's width that a turn keeps for its backward, and as many thirds of a feed-forward's
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadCost:
    """``parameters`` that are trained; ``memory`` in bytes beside the engine's; ``disk`` in bytes;
    ``answer_flops``: of a token of an answer in each round; ``prompt_flops``: of one of a prompt."""

    parameters: int
    memory: int
    disk: int
    answer_flops: float
    prompt_flops: float

    def flops(self, answers: int, prompts: int) -> float:
        """Of so many tokens of answers and prompts."""
        return self.answer_flops * answers + self.prompt_flops * prompts


def head_cost(layout: HeadLayout, *, turns: int, rows: int, longest: int) -> HeadCost:
    """Of a head with steps of so many ``rows`` in texts of at most ``longest``."""
    shapes, config = layout.shapes(), layout.model
    count = sum(prod(shape) for shape in shapes.values())
    eagle3 = layout.form == "eagle3"
    turns, tokens = (turns if eagle3 else 1), len(layout.tokens)
    width, vocab = config.hidden_size, config.vocab_size * config.hidden_size
    shared = vocab * (1 if config.tie_word_embeddings else 2) + (
        0 if tokens == config.vocab_size else tokens * width
    )
    live = LIVE * width + 3 * config.intermediate_size
    attention = 3 * config.num_attention_heads * longest
    logits = 2 * tokens * rows + (1 << 24)  # what the model finds likely, and a part of the head's own
    memory = F32 * (4 * count + shared + turns * rows * (live + attention) + logits + 8 * rows * width)
    own, head = matrices(shapes) - (tokens * width if eagle3 else 0), tokens * width
    last, fuse = 2.0 * head, shapes["fc.weight"][0] * shapes["fc.weight"][1]
    passed = 6.0 if eagle3 else 4.0  # the model's own head is not trained
    return HeadCost(
        parameters=count,
        memory=memory,
        disk=F32 * 3 * 3 * count,  # two checkpoints and one that is being written, with moments
        answer_flops=last + turns * (6.0 * (own - fuse) + passed * head) + 6.0 * fuse,
        prompt_flops=6.0 * own,
    )


def answer_flops(layout: HeadLayout) -> float:
    """Of a token that the model reads or writes."""
    config = layout.model
    weights = matrices(expected_tensors(config))
    return 2.0 * (weights if config.tie_word_embeddings else weights - config.vocab_size * config.hidden_size)
