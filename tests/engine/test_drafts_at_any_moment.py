"""An interrupt at any line of the engine while a head or a model drafts: all pages are counted, and the next
answer is that of an engine which nothing befell."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from minicpm4 import LLM, SamplingParams
from tests.engine.test_any_moment import Raise
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.drafts import make_draft, make_eagle3

ASKED = [[5, 6, 7, 8] * 6, [9, 8, 7]]
PARAMS = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=6, temperature=1.0, seed=3, n=2)
NEXT = [[5, 6, 7, 8] * 6 + [3], [9, 8, 7]]
INTERRUPTS = 20  # of each kind
KINDS = ("mtp", "eagle3", "model")


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("drafts")
    model = make_checkpoint(folder / "model", num_hidden_layers=6)
    config = load_model(model).config
    small = make_checkpoint(folder / "small", num_hidden_layers=1)
    make_draft(model / "mtp", config)
    eagle3 = make_eagle3(folder / "eagle3", config, 120)
    return model, {"mtp": "mtp", "eagle3": f"eagle:{eagle3}", "model": f"model:{small}"}


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[list[int]]]:
    return [[list(one.token_ids) for one in out.outputs] for out in llm.generate(prompts, params)]


def work(llm: LLM) -> None:
    llm.generate(ASKED, PARAMS)
    llm.generate(ASKED, SAMPLED)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_while_drafts_are_made(drafts: tuple[Path, dict[str, str]], kind: str) -> None:
    model, names = drafts
    options: dict[str, Any] = {"kv": "float32", "threads": 1, "max_batch": 3, "chunk": 16}
    with LLM(model, draft="off", **options) as plain:
        wanted = [answers(plain, NEXT, one) for one in (PARAMS, SAMPLED)]
    with LLM(model, draft=names[kind], draft_tokens=4, **options) as llm:
        counter = Raise(KeyboardInterrupt, 1 << 40)
        counter.during(lambda: work(llm))
        lines = (1 << 40) - counter.left
        assert lines > 500 and any(out.metrics.draft_tokens for out in llm.generate(NEXT, PARAMS))
        rng, befell = Random(kind), 0
        engine: Any = llm.engine
        for _ in range(INTERRUPTS):
            at = rng.randrange(1, lines)
            injected = Raise(KeyboardInterrupt, at)
            injected.during(lambda: work(llm))
            befell += injected.done
            assert [answers(llm, NEXT, one) for one in (PARAMS, SAMPLED)] == wanted, at
            # Read anew each time: what an interrupted change left is replaced.
            for pages in (engine.scheduler.pages, engine.drafting.drafter._pages):
                assert pages.num_available == pages.num_pages, at
                pages.check([])
            drafter = engine.drafting.drafter
            assert not engine.has_work and not vars(drafter).get("_seen", vars(drafter).get("_mirrors")), at
        assert befell > INTERRUPTS / 2, befell
