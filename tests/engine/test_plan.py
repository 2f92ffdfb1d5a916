"""The memory plan: its sum, the context it chooses, and what it says when nothing fits."""

from __future__ import annotations

import dataclasses
import tracemalloc
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import KVFormat
from minicpm4.engine.drafter import Wish
from minicpm4.engine.load import inspect
from minicpm4.engine.options import EngineOptions
from minicpm4.engine.plan import Demand, check_score, describe, make_plan
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.suffix import BYTES_A_TOKEN, MOST_SHARED, SuffixDrafter
from minicpm4.errors import MemoryPlanError
from minicpm4.formats.names import EMBED, HEAD
from minicpm4.kernels.ref import RefOps
from minicpm4.machine import human
from minicpm4.model.cache import KVPool
from minicpm4.model.ranks import write_ranks
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.fixtures.tiny import tiny_config
from tests.model.drafts import make_draft

GB = 10**9


def config(**changes: Any) -> ModelConfig:
    sizes = {"model_type": "llama", "vocab_size": 1000, "max_position_embeddings": 8192}
    return tiny_config(**{**sizes, **changes})


def demand(**changes: Any) -> Demand:
    values: dict[str, Any] = {
        "ops": RefOps(),
        "config": config(),
        "sparse": None,
        "kv": "bf16",
        "page_size": 64,
        "weights": 1_000_000,
        "kinds": frozenset({"bf16"}),
        "context": None,
        "max_batch": 8,
        "max_rows": 512,
        "process": 50_000_000,
        "available": GB,
    }
    return Demand(**(values | changes))


def test_total_is_the_sum_of_the_rows() -> None:
    plan = make_plan(demand())
    assert plan.needed == sum(size for _, size in plan.parts()) == plan.total - 50_000_000


@pytest.mark.parametrize("kv", ["bf16", "int8", "float32"])
def test_cache_is_what_the_pool_takes(kv: KVFormat) -> None:
    sparse = SparseConfig(lse_approx=True)
    plan = make_plan(demand(sparse=sparse, context=300, kv=kv))
    pool = KVPool(config(), num_pages=plan.num_pages, page_size=64, kv=kv, sparse=sparse)
    assert plan.kv == pool.nbytes


def test_int8_nearly_halves_the_cache() -> None:
    pages = {kv: demand(kv=kv).page for kv in ("bf16", "int8")}
    d = config().head_dim
    assert pages["int8"] * 2 * d == pages["bf16"] * (d + 4)


def test_pool_holds_a_whole_context_and_some_for_the_others() -> None:
    plan = make_plan(demand())
    assert plan.context == 8192 and plan.num_pages == 128 + 7 * 16
    assert make_plan(demand(max_batch=1)).num_pages == 128


def test_short_contexts_are_planned_for_every_sequence() -> None:
    assert make_plan(demand(context=100)).num_pages == 8 * 2


def test_pages_beyond_the_context_shrink_first() -> None:
    full = make_plan(demand(context=8192, available=None))
    tight = make_plan(demand(context=8192, available=full.needed - 20 * demand().page))
    assert tight.context == 8192 and tight.num_pages == full.num_pages - 20


def test_without_a_wish_the_context_is_what_fits() -> None:
    room = 4_500_000
    plan = make_plan(demand(available=room))
    assert 256 <= plan.context < 8192 and plan.context % 64 == 0 and plan.needed <= room
    larger = demand(available=room).plan(plan.context + 64, 0)
    assert larger.needed > room * 0.95


def test_a_wish_that_does_not_fit_is_refused_with_figures() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        make_plan(demand(context=8192, available=4_500_000, kv="float32"))
    text = str(caught.value)
    assert "a context of 8,192 tokens needs" in text and "weights 1.00 MB" in text
    assert "4.50 MB are available" in text and "--kv bf16 halves the cache" in text
    assert "a context (--context) of at most" in text and "--weights int4" in text
    with pytest.raises(MemoryPlanError, match="--kv int8 makes the cache half as large"):
        make_plan(demand(context=8192, available=3_500_000))
    with pytest.raises(MemoryPlanError) as caught:  # all but the cache takes more
        make_plan(demand(context=8192, available=2_500_000))
    assert "--kv" not in str(caught.value) and "--weights int4" in str(caught.value)


def test_a_limit_is_called_one_and_weights_that_are_small_are_not_to_be_made_smaller() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        make_plan(demand(available=500_000, limited=True, kinds=frozenset({"int8", "int4"})))
    text = str(caught.value)
    assert "500 kB are allowed (--memory)" in text and "--weights" not in text


@pytest.mark.parametrize("context", [None, 100, 8192])
def test_the_limit_it_names_does_fit_and_what_would_not_help_is_not_named(context: int | None) -> None:
    with pytest.raises(MemoryPlanError) as caught:
        make_plan(demand(context=context, available=1000, limited=True))
    text = str(caught.value)
    assert "--kv" not in text and "--weights" not in text
    named = round(float(text.split("--memory ")[1].split()[0]) * GB)
    assert make_plan(demand(context=context, available=named, limited=True))
    with pytest.raises(MemoryPlanError):
        make_plan(demand(context=context, available=named - 10_000_000, limited=True))


def test_the_context_it_names_does_fit() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        make_plan(demand(context=8192, available=4_500_000))
    named = int(str(caught.value).split("at most ")[1].split()[0].replace(",", ""))
    assert make_plan(demand(context=named, available=4_500_000)).context == named


def test_memory_bounds_a_plan_however_much_there_is() -> None:
    name, memory = "smollm2-135m-instruct", 200_000_000
    plan = inspect(name, EngineOptions(memory=memory)).plan
    assert plan.needed <= memory == plan.available and plan.context < 8192
    with pytest.raises(MemoryPlanError, match="200 MB are allowed"):
        inspect(name, EngineOptions(memory=memory, context=8192))


def test_weights_alone_too_large_are_refused() -> None:
    with pytest.raises(MemoryPlanError, match=r"weights 5\.00 GB.*1\.00 GB are available"):
        make_plan(demand(weights=5 * GB))


def test_unknown_memory_refuses_nothing() -> None:
    assert make_plan(demand(weights=10**15, available=None)).available is None


def test_the_table_names_every_part() -> None:
    text = str(make_plan(demand()))
    for part in (
        "weights",
        "cache of 15,360 tokens (240 pages of 64)",
        "logits",
        "with this process",
        "available",
    ):
        assert part in text


def test_logits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MemoryPlanError, match=r"logits of 1,000 tokens take 200 MB, 100 MB are available"):
        check_score(1000, 50_000, 100_000_000)
    check_score(1000, 50_000, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "2 kB"),
        (1_230_000, "1.23 MB"),
        (999_600_000, "1.00 GB"),
        (5 * GB, "5.00 GB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text


def test_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan(demand()).context = 1  # type: ignore[misc]


def test_both_sums_have_the_same_names_wherever_they_are_shown() -> None:
    plan = make_plan(demand(weights=100_000_000))
    told = f"memory planned: {human(plan.needed)} ({human(plan.total)} with this process)"
    assert describe(RefOps(), plan, None, "n").endswith(told)
    sizes = dict(plan.rows())
    assert (sizes["memory planned"], sizes["with this process"]) == (plan.needed, plan.total)
    shown = [line.split("  ") for line in str(plan).splitlines()]
    assert [(name.strip(), size[-1].strip()) for name, *size in shown] == [
        (name, human(size)) for name, size in plan.rows()
    ]
    assert human(plan.needed) != human(plan.total)


@pytest.mark.parametrize("kv", ["float32", "bf16", "int8"])
def test_a_choice_is_planned_for_the_blocks_that_there_are(kv: KVFormat) -> None:
    """topk and the window are a file's, and may be anything: steps choose among a context's blocks."""
    few, many = (
        make_plan(demand(sparse=SparseConfig(topk=topk, window_size=window), context=640, kv=kv))
        for topk, window in ((10, 640), (1_000_000, 1 << 23))
    )
    assert few == many


@pytest.mark.parametrize("kind", ["model", "eagle"])
def test_what_drafts_is_planned_for_the_context_that_there_is(tmp_path: Path, kind: str) -> None:
    """Where memory shortens that, what drafts takes no more than it needs then."""
    checkpoint = make_checkpoint(tmp_path / "model", max_position_embeddings=8192)
    config = inspect(checkpoint, EngineOptions()).config
    place = checkpoint if kind == "model" else make_draft(tmp_path / "head", config, final_norm=None)
    options = EngineOptions(draft=f"{kind}:{place}", chunk=16, max_batch=2)
    whole = inspect(checkpoint, options).plan
    fixed = whole.needed - whole.kv - whole.draft
    found = inspect(checkpoint, replace(options, memory=fixed + (whole.kv + whole.draft) * 3 // 4))
    assert found.plan.context < whole.context and found.plan.draft < whole.draft
    assert found.plan.needed <= fixed + (whole.kv + whole.draft) * 3 // 4
    if found.draft is not None:
        assert found.draft.plan.context == found.plan.context
        assert found.draft.plan.needed <= found.plan.draft


def test_an_index_of_texts_is_planned(checkpoint: Path) -> None:
    plain, own, shared = (
        inspect(checkpoint, EngineOptions(draft=draft, max_batch=1)).plan
        for draft in ("off", "suffix", "suffix:shared")
    )
    assert plain.draft == 0 and own.draft == own.context * BYTES_A_TOKEN
    assert shared.draft - own.draft >= MOST_SHARED * BYTES_A_TOKEN


@pytest.mark.parametrize("length", [1000, 20_000, 100_000])
def test_an_index_takes_what_is_planned_at_most(length: int) -> None:
    rng = Random(0)
    tokens = [rng.randrange(150_000) for _ in range(length)]
    drafter = SuffixDrafter()
    tracemalloc.start()
    try:
        drafter.guess([Wish(Sequence(0, tokens, length + 9), 4, lambda _: True)])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length * BYTES_A_TOKEN / 2 < taken <= length * BYTES_A_TOKEN


def test_copied_rows_of_a_head_are_planned(checkpoint: Path, tmp_path: Path) -> None:
    text = inspect(checkpoint, EngineOptions()).text
    write_ranks(tmp_path / "ranks.json", np.arange(320)[::-1], text.tokenizer.digest)
    options = EngineOptions(draft=f"model:{checkpoint}")
    few = replace(options, draft_ranks=tmp_path / "ranks.json", draft_vocab=80)
    whole, cut = (inspect(checkpoint, one) for one in (options, few))
    head = next(row for row in whole.weights if row.name == EMBED or row.name == HEAD)
    assert cut.plan.draft - whole.plan.draft == head.nbytes // 4
