"""What is to draft, before a model is loaded: whether a head fits, and what any drafter takes."""

from __future__ import annotations

from collections.abc import Callable

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.engine.drafters import draft_count, draft_head, index_nbytes
from minicpm4.engine.head_drafter import WINDOW
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.plan import planned_tokens
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.step import Ints
from minicpm4.model.cache import PAGE_SIZE, page_nbytes
from minicpm4.model.head_files import HeadPlan, plan_head
from minicpm4.model.ranks import chosen_tokens
from minicpm4.model.source import OpenModel
from minicpm4.places import from_user
from minicpm4.text.model_text import ModelText


def plan_draft_head(asked: EngineOptions, source: OpenModel, ops: OpTable) -> HeadPlan | None:
    """The head that drafts for a model, opened; None where none does. Raises as ``plan_head`` does."""
    folder = draft_head(asked.draft, source.path)
    if folder is None:
        return None
    if not ops.on_host:
        raise UnsupportedError("heads draft on the CPU only", "use another drafter, or backend='cpu'")
    require(
        asked.draft != "mtp" or folder.is_dir(),
        f"draft = 'mtp', and there is no head {folder}",
        "train one (mtp in a recipe), or give another drafter, such as eagle:PATH",
    )
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
    ranks = from_user(str(options.draft_ranks))
    return chosen_tokens(ranks, text.tokenizer.digest, most, count, always)


def draft_demand(
    options: EngineOptions,
    ops: OpTable,
    config: ModelConfig,
    *,
    head: HeadPlan | None,
    model: Callable[[int], int] | None,
    few: int,
) -> Callable[[int], int]:
    """Bytes of what drafts beside a model of ``config``, for a context of that: of a ``model`` by its own
    demand, of a head, or of an index of the text. ``few``: of the rows of a head that are copied."""

    def needed(context: int) -> int:
        tokens = planned_tokens(context, options.max_batch)
        if model is not None:
            return few + model(context)
        if head is not None:
            return few + _head_nbytes(head, options, config, tokens)
        return index_nbytes(options.draft, ops, tokens)

    return needed


def _head_nbytes(head: HeadPlan, options: EngineOptions, config: ModelConfig, tokens: int) -> int:
    """Bytes of a head, its pages for so many tokens, and the states that it is shown."""
    pages = page_nbytes(head.config, page_size=PAGE_SIZE, kv=options.kv, sparse=None)
    states = len(head.hidden) * options.max_rows + options.max_batch * WINDOW
    return head.file.nbytes + -(-tokens // PAGE_SIZE) * pages + 4 * states * config.hidden_size
