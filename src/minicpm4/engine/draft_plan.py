"""A head that is to draft, before a model is loaded: whether it fits, and what it takes."""

from __future__ import annotations

from pathlib import Path

from minicpm4.config import ModelConfig
from minicpm4.engine.drafters import draft_count, draft_head
from minicpm4.engine.head_drafter import WINDOW
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.plan import BATCH_TOKENS
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.kernels.contract import Ints, OpTable
from minicpm4.model.cache import PAGE_SIZE, page_nbytes
from minicpm4.model.head_files import HeadPlan, plan_head
from minicpm4.model.ranks import chosen_tokens
from minicpm4.model.source import OpenModel
from minicpm4.text.model_text import ModelText


def plan_draft_head(asked: EngineOptions, source: OpenModel, ops: OpTable) -> HeadPlan | None:
    """The head that drafts for a model, opened; None where none does. Raises as ``plan_head`` does."""
    folder = draft_head(asked.draft, source.path)
    if folder is None:
        return None
    if not ops.on_host:
        raise UnsupportedError("heads draft on the CPU only", "use another drafter, or backend='cpu'")
    found = plan_head(folder, source.config, WINDOW)
    if asked.draft_ranks is not None and found.kind == "eagle3":
        raise ConfigError(
            f"the head in {folder} has a vocabulary of its own, draft_vocab is about the model's",
            "leave it out",
        )
    return found


def ranked_tokens(options: EngineOptions, source: OpenModel, text: ModelText, vocab_size: int) -> Ints | None:
    """The tokens that a drafter guesses among which takes the head of ``source``, for a model of
    ``vocab_size`` tokens; None: all. Raises ConfigError."""
    if options.draft_ranks is None:
        return None
    config = source.config
    most = min(config.vocab_size, vocab_size)
    count = draft_count(options.draft_vocab, most)
    always = [i for i in (*config.eos_token_ids, *text.end_ids) if i < most]
    ranks = Path(options.draft_ranks).expanduser()
    return chosen_tokens(ranks, text.tokenizer.digest, most, count, always)


def head_nbytes(head: HeadPlan | None, options: EngineOptions, config: ModelConfig) -> int:
    """Bytes of a head beside a model of ``config``, its pages, and the states that it is shown."""
    if head is None:
        return 0
    longest = options.context or config.max_position_embeddings
    tokens = longest + (options.max_batch - 1) * min(longest, BATCH_TOKENS)
    pages = page_nbytes(head.config, page_size=PAGE_SIZE, kv=options.kv, sparse=None)
    states = len(head.hidden) * options.max_rows + options.max_batch * WINDOW
    return head.file.nbytes + -(-tokens // PAGE_SIZE) * pages + 4 * states * config.hidden_size
