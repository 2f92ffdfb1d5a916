"""A head in training computes what it will when it drafts; it learns, and goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from minicpm4 import LLM, SamplingParams  # noqa: E402
from minicpm4.errors import CheckpointError, ConfigError  # noqa: E402
from minicpm4.files import CHECKSUMS  # noqa: E402
from minicpm4.formats.packing import unpack  # noqa: E402
from minicpm4.formats.quant import QuantSpec  # noqa: E402
from minicpm4.kernels.ref import RefOps  # noqa: E402
from minicpm4.model.forward import forward, logits  # noqa: E402
from minicpm4.model.head_files import plan_head  # noqa: E402
from minicpm4.model.head_layout import FORMS, HeadLayout  # noqa: E402
from minicpm4.model.source import open_model  # noqa: E402
from minicpm4.spec.answers import Answered, Asking, answered  # noqa: E402
from minicpm4.spec.states import Watcher  # noqa: E402
from minicpm4.train.draft_head import (  # noqa: E402
    LATER,
    STATES,
    TOKENS,
    DraftHead,
    Shown,
    first_values,
    states_wanted,
)
from minicpm4.train.draft_run import HeadRun, HeadSettings, write_head  # noqa: E402
from minicpm4.train.saved import saved  # noqa: E402
from minicpm4.train.settings import Decay  # noqa: E402
from tests.fixtures.loading import load_model  # noqa: E402
from tests.fixtures.random_checkpoint import make_checkpoint  # noqa: E402
from tests.model.driver import Driver  # noqa: E402

torch.set_num_threads(1)
TEXTS = [([5, 9, 7, 8, 3, 9, 4, 11, 8, 30], 4), ([40, 41, 42, 7, 8, 50], 2), ([9] * 3, 1)]
TURNS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, but sure of what it says, most of which hangs on the last token."""
    made = make_checkpoint(tmp_path_factory.mktemp("target") / "model", num_hidden_layers=6)
    tensors = load_file(made / "model.safetensors")
    tensors["model.norm.weight"] *= 12
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= 0.1
    save_file(tensors, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, kv="float32", threads=1, max_batch=4, prefix_cache=False, draft="off") as made:
        yield made


def head_of(
    model: Path, form: str = "eagle3", tokens: int | None = None, seed: int = 3, rounding: Any = None
) -> DraftHead:
    source = open_model(model)
    size = source.config.vocab_size
    kept = size if form == "eagle2" or tokens is None else tokens
    chosen = np.sort(np.random.default_rng(5).permutation(size)[:kept]).astype(np.int32)
    layout = HeadLayout(form=form, model=source.config, tokens=chosen)
    return DraftHead(layout, source, dict(first_values(layout, source, seed)), TURNS, rounding)


def shown(llm: LLM, head: DraftHead, texts: Sequence[tuple[list[int], int]]) -> list[Shown]:
    one = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    watcher = Watcher(llm, states_wanted(head.layout))
    kept = watcher.answers([ids for ids, _ in texts], [one] * len(texts))
    return [
        Shown(ids=np.array(ids, np.int32), start=start, states=found)
        for (ids, start), (_, found) in zip(texts, kept, strict=True)
    ]


def test_states_are_those_of_the_forward(model: Path, llm: LLM) -> None:
    head = head_of(model)
    weights = load_model(model).weights
    for one in shown(llm, head, TEXTS):
        kept: dict[int, Any] = {}
        driver = Driver(RefOps(), weights, context=64)
        step = driver.step(one.ids.tolist())
        forward(RefOps(), weights, step, driver.pool, keep=lambda n, x, kept=kept: kept.update({n: x.copy()}))
        assert set(one.states) == {2, 3, 6}
        for layers, states in one.states.items():
            np.testing.assert_allclose(states, kept[layers], rtol=2e-3, atol=2e-3)


def shaken(head: DraftHead) -> DraftHead:
    """Far from what it begins with."""
    for parameter in head.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        parameter.data += 0.05 * noise
    return head


def drafted(made: Any, weights: Any, one: Shown, turns: int) -> Iterator[list[tuple[int, Any, Any]]]:
    """From each place of an answer on, turn after turn on the ops that draft: the place that is reached,
    scores of the token behind it, and the state."""
    ids = one.ids.tolist()
    for i in range(one.start - 1, len(ids) - 2):
        features = made.fuse([one.states[layers][: i + 1] for layers in made.hidden])
        driver, found = Driver(RefOps(), weights, context=64), []
        following = ids[1 : i + 2]
        for at in range(i + 1, min(i + 1 + turns, len(ids) - 1)):
            step = driver.step(following)
            features, rows = made.step(step, step.ids, features, driver.pool.layer(0))
            features, following = features[-1:], [ids[at + 1]]
            found.append((at, made.logits(rows[-1:])[0].astype(np.float64), features[0]))
        yield found


def cross_entropy(scores: np.ndarray, target: np.ndarray) -> float:
    """Of what is drafted by ``scores`` where the model says ``target``."""
    wanted = np.exp(target - target.max())
    nll = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
    return nll - float(scores @ wanted / wanted.sum())


def summed(form: str, losses: list[list[float]], near: list[float]) -> float:
    """The loss of losses by turn, and of EAGLE-2 of how near states are."""
    if form == "eagle2":
        return float(STATES * np.mean(near) + TOKENS * np.mean(losses[0]))
    return float(sum(LATER**turn * np.mean(part) for turn, part in enumerate(losses) if part))


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_it_will_when_it_drafts(model: Path, llm: LLM, tmp_path: Path, form: str) -> None:
    """The loss computed anew from the written head, one row and turn after another, on the ops that draft."""
    head = shaken(head_of(model, form, 120))
    texts = shown(llm, head, TEXTS[:2])
    found = head(texts)
    write_head(tmp_path / "head", head, "float32")
    ops, weights = RefOps(), load_model(model).weights
    made = plan_head(tmp_path / "head", weights.config, 64).read(weights, ops)
    tokens = np.arange(weights.config.vocab_size) if made.tokens is None else made.tokens
    losses, near, right = [list[float]() for _ in range(TURNS)], list[float](), list[list[bool]]()
    for one in texts:
        ids, last = one.ids.tolist(), one.states[6]
        for turns in drafted(made, weights, one, head.turns):
            for turn, (at, scores, state) in enumerate(turns):
                if ids[at + 1] in tokens:
                    target = logits(ops, weights, last[at : at + 1])[0][tokens].astype(np.float64)
                    losses[turn].append(cross_entropy(scores, target))
                if form == "eagle2":
                    pair = torch.tensor(state), torch.tensor(last[at])
                    near.append(float(torch.nn.functional.smooth_l1_loss(*pair)))
            if len(turns) == head.turns:
                right.append([int(tokens[scores.argmax()]) == ids[at + 1] for at, scores, _ in turns])
    assert float(found.loss.detach()) == pytest.approx(summed(form, losses, near), rel=2e-3)
    assert found.right.tolist() == right


ASKING = Asking(held=4, tokens=24, temperature=0.6, piece=3)


def answers(llm: LLM, model: Path, folder: Path, count: int) -> list[Answered]:
    prompts = [[5 + i, 9, 7 + i % 3, 60 + i % 5] for i in range(count)]
    layout = HeadLayout(form="eagle3", model=open_model(model).config, tokens=np.arange(320, dtype=np.int32))
    found = answered(llm, folder, prompts, ASKING, states_wanted(layout), {"model": "m"})
    return [one for one in found if one is not None]


def settings(**changes: Any) -> HeadSettings:
    made = HeadSettings(
        form="eagle3",
        steps=48,
        batch=4,
        rate=3e-3,
        warmup=2,
        decay=Decay(kind="linear", steps=40),
        turns=TURNS,
        seed=1,
        validate=12,
        every=5,
    )
    return replace(made, **changes)


def run_of(llm: LLM, model: Path, folder: Path, **changes: Any) -> tuple[HeadRun, DraftHead, list[Any]]:
    head, lines = head_of(model, seed=2), list[Any]()
    every = answers(llm, model, folder.parent / "answers", 36)
    held, learnt = every[:4], every[4:]
    about = {"answers": "few"}
    run = HeadRun(settings(**changes), folder, head, learnt, held, about=about, report=lines.append)
    return run, head, lines


def test_it_learns_and_goes_on_bit_for_bit(model: Path, llm: LLM, tmp_path: Path) -> None:
    whole, head, lines = run_of(llm, model, tmp_path / "whole")
    assert whole.run()
    looks = [line for line in lines if "accept_length" in line]
    assert [line["step"] for line in looks] == [0, 12, 24, 36, 48]
    assert looks[-1]["validation"] < looks[0]["validation"] - 0.5
    assert looks[-1]["accept_length"] > looks[0]["accept_length"] + 0.2
    assert len(looks[-1]["accepted"]) == TURNS and (tmp_path / "whole/acceptance.svg").is_file()

    first, _, _ = run_of(llm, model, tmp_path / "cut")
    assert not first.run(until=7)
    second, other, _ = run_of(llm, model, tmp_path / "cut", every=3)
    assert second.step == 7 and second.run()
    mine, theirs = head.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [one.step for one in saved(tmp_path / "cut")] == [45, 48]

    with pytest.raises(ConfigError, match=r"other settings \(rate: 0\.003 -> 0\.01\)"):
        run_of(llm, model, tmp_path / "cut", rate=0.01)


def test_what_a_killed_run_saved_is_gone_on_with(
    model: Path, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, head, _ = run_of(llm, model, tmp_path / "whole", steps=12, decay=Decay(kind="linear", steps=10))
    whole.run()
    cut, _, _ = run_of(llm, model, tmp_path / "cut", steps=12, decay=Decay(kind="linear", steps=10))
    real, count = cut._one, 0

    def dies() -> Any:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt  # nothing is saved any more
        return real()

    monkeypatch.setattr(cut, "_one", dies)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again, other, _ = run_of(llm, model, tmp_path / "cut", steps=12, decay=Decay(kind="linear", steps=10))
    assert again.step == 5 and again.run()
    mine, theirs = head.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("guard", [5, {"recent": ["a"]}, {"bad": -1}])
def test_a_checkpoint_whose_guard_is_damaged_is_refused(
    model: Path, llm: LLM, tmp_path: Path, guard: Any
) -> None:
    begun, _, _ = run_of(llm, model, tmp_path / "run")
    begun.run(until=1)
    (found,) = saved(tmp_path / "run")
    (found.folder / CHECKSUMS).unlink()
    file = found.folder / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guard": guard}))
    with pytest.raises(
        CheckpointError, match=r"state\.json is damaged: its guard holds no losses"
    ) as refused:
        run_of(llm, model, tmp_path / "run")
    assert refused.value.remedy == "remove this checkpoint to go on from an earlier one"


def test_lines_of_the_log_that_no_run_wrote_are_not_drawn(model: Path, llm: LLM, tmp_path: Path) -> None:
    begun, _, _ = run_of(llm, model, tmp_path / "run")
    begun.run(until=1)
    log, picture = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "acceptance.svg"
    before = picture.read_bytes()
    with log.open("a") as file:
        for name in ("training_length", "accept_length"):
            file.write(
                json.dumps({"step": 1, name: "long"}) + "\n" + json.dumps({"step": 1, name: None}) + "\n"
            )
    again, _, _ = run_of(llm, model, tmp_path / "run")
    assert not again.run(until=1) and picture.read_bytes() == before


@pytest.mark.parametrize("form", FORMS)
def test_a_written_head_drafts_and_changes_nothing(model: Path, tmp_path: Path, form: str) -> None:
    write_head(tmp_path / "head", head_of(model, form, 120), "float16")
    prompts = [[5, 6, 7, 8], [9, 8, 7]]
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    found = []
    for draft in ("off", f"eagle:{tmp_path / 'head'}"):
        fixed = None if draft == "off" else 3
        with LLM(model, kv="float32", threads=1, draft=draft, draft_tokens=fixed) as llm:
            found.append(llm.generate(prompts, params))
    assert [out.token_ids for out in found[0]] == [out.token_ids for out in found[1]]
    assert all(out.metrics.draft_tokens > 0 for out in found[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_head_trained_rounded_is_held_rounded(model: Path, llm: LLM, tmp_path: Path, form: str) -> None:
    spec = QuantSpec(kind="int4", group_size=32)
    head = head_of(model, form, 128, rounding=spec)
    head(shown(llm, head, TEXTS)).loss.backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in head.parameters())
    write_head(tmp_path / "head", head, "float16")
    weights = load_model(model).weights
    made: Any = plan_head(tmp_path / "head", weights.config, 64).read(weights, RefOps())
    fc = made.own.fc if form == "eagle3" else made.layer.fc
    assert fc.weight.spec == spec
    np.testing.assert_array_equal(unpack(fc.weight), head.final("fc.weight").numpy())


def test_a_model_of_two_layers_has_no_three_states(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    with pytest.raises(ConfigError, match="three states, and the model has 2 layers"):
        head_of(path)
    assert states_wanted(head_of(path, "eagle2").layout) == (2,)
