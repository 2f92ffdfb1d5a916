"""A head that is to draft, before a model is loaded: whether it fits, and what it takes."""

from __future__ import annotations

from minicpm4.config import ModelConfig
from minicpm4.engine.drafters import draft_head
from minicpm4.engine.head_drafter import WINDOW
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.plan import BATCH_TOKENS
from minicpm4.errors import UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.model.cache import PAGE_SIZE, page_nbytes
from minicpm4.model.head_files import HeadPlan, plan_head
from minicpm4.model.source import OpenModel


def plan_draft_head(asked: EngineOptions, source: OpenModel, ops: OpTable) -> HeadPlan | None:
    """The head that drafts for a model, opened; None where none does. Raises as ``plan_head`` does."""
    folder = draft_head(asked.draft, source.path)
    if folder is None:
        return None
    if not ops.on_host:
        raise UnsupportedError("heads draft on the CPU only", "use another drafter, or backend='cpu'")
    return plan_head(folder, source.config, WINDOW)


def head_nbytes(head: HeadPlan | None, options: EngineOptions, config: ModelConfig) -> int:
    """Bytes of a head beside a model of ``config``, its pages, and the states that it is shown."""
    if head is None:
        return 0
    longest = options.context or config.max_position_embeddings
    tokens = longest + (options.max_batch - 1) * min(longest, BATCH_TOKENS)
    pages = page_nbytes(head.config, page_size=PAGE_SIZE, kv=options.kv, sparse=None)
    states = len(head.hidden) * options.max_rows + options.max_batch * WINDOW
    return head.file.nbytes + -(-tokens // PAGE_SIZE) * pages + 4 * states * config.hidden_size
