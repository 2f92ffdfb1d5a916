"""Heads draft from the states that they were made for, in each released layout; others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicpm4 import LLM, SamplingParams
from minicpm4.engine import head_drafter
from minicpm4.engine.drafter import Guess, Wish
from minicpm4.errors import CheckpointError, ConfigError, UnsupportedError
from minicpm4.kernels.ref import RefOps
from minicpm4.model.forward import forward
from minicpm4.model.head_files import plan_head
from tests.engine.conftest import SPARSE
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.model.drafts import make_draft, make_eagle3
from tests.model.driver import Driver

Make = Callable[..., LLM]
LAYERS = 6
KINDS = ("mtp", "eagle2", "vllm", "eagle3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("heads") / "model", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def heads(model: Path) -> dict[str, Path]:
    """A head in each layout."""
    config = load_model(model).config
    found = {"mtp": make_draft(model / "mtp", config)}
    found["eagle2"] = make_draft(model.parent / "eagle2", config, final_norm=None, mup_denominator=None)
    found["vllm"] = make_draft(model.parent / "vllm", config, final_norm=None, mup_denominator=1)
    tensors = load_file(found["vllm"] / "model.safetensors")
    renamed = {name.replace("layers.0.", "model.eagle_layers.0."): array for name, array in tensors.items()}
    save_file(renamed, found["vllm"] / "model.safetensors")
    found["eagle3"] = make_eagle3(model.parent / "eagle3", config, 120)
    return found


@pytest.fixture
def make_llm(model: Path) -> Any:
    made: list[LLM] = []

    def make(path: Path = model, **options: Any) -> LLM:
        made.append(LLM(path, **({"kv": "float32", "threads": 2, "max_batch": 3} | options)))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


PROMPTS = [[5, 6, 7, 8] * 20, [9, 8, 7], [*range(20, 60)], [5, 6, 7, 8] * 20 + [3]]


def draft_name(kind: str, heads: dict[str, Path]) -> str:
    return "mtp" if kind == "mtp" else f"eagle:{heads[kind]}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparse", [None, {**SPARSE, "dense_len": -1}], ids=["dense", "sparse"])
def test_no_answer_changes(make_llm: Make, heads: dict[str, Path], kind: str, sparse: Any) -> None:
    options: Any = {"chunk": 16, "sparse": sparse}
    params = [
        SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=12, temperature=1.0, seed=3, n=2),
    ]
    plain, drafted = (
        make_llm(draft="off", **options),
        make_llm(draft=draft_name(kind, heads), draft_tokens=4, **options),
    )
    assert drafted.plan.draft > 0
    for one in params:
        for _ in range(2):  # then prompts are cached, and heads begin where they were first shown states
            wanted = [[s.token_ids for s in out.outputs] for out in plain.generate(PROMPTS, one)]
            found = drafted.generate(PROMPTS, one)
            assert [[s.token_ids for s in out.outputs] for out in found] == wanted
            assert all(out.metrics.draft_tokens > 0 for out in found)
    drafter: Any = drafted.engine.drafting.drafter  # type: ignore[attr-defined]
    assert not drafter._seen and drafter._pages.num_available == drafter._pages.num_pages


class Spy:
    """Notes what a drafter was asked, and what it said."""

    def __init__(self, drafter: Any) -> None:
        self.real, self.said = drafter.guess, list[tuple[list[int], Guess]]()
        drafter.guess = self.guess

    def guess(self, wishes: list[Wish]) -> list[Guess | None]:
        found: list[Guess | None] = self.real(wishes)
        for wish, guess in zip(wishes, found, strict=True):
            assert guess is not None
            self.said.append((list(wish.sequence.tokens), guess))
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_those_of_its_formula(
    make_llm: Make, model: Path, heads: dict[str, Path], kind: str
) -> None:
    """Computed anew from the text alone: the states of the right layers, at the right places."""
    llm = make_llm(draft=draft_name(kind, heads), draft_tokens=3, chunk=16)
    spy = Spy(llm.engine.drafting.drafter)  # type: ignore[attr-defined]
    llm.generate(PROMPTS[:3], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
    weights, ops = load_model(model).weights, RefOps()
    head = plan_head(heads[kind], weights.config, 1024).read(weights, ops)
    assert len(spy.said) > 12
    for tokens, guess in spy.said[::4]:
        driver, kept = Driver(ops, weights, context=512), {}

        def keep(layers: int, x: Any, kept: Any = kept) -> None:
            kept[layers] = np.array(x)

        forward(ops, weights, driver.step(tokens[:-1]), driver.pool, keep=keep)
        features, following = head.fuse([kept[layers] for layers in head.hidden]), tokens[1:]
        own, drafts, chances = Driver(ops, weights, context=512, seed=1), [], []
        for _ in range(len(guess.drafts)):
            step = own.step(following[-len(features) :])
            features, rows = head.step(step, step.ids, features, own.pool.layer(0))
            logits = head.logits(rows[-1:])[0]
            best = int(logits.argmax())
            drafts.append(best if head.tokens is None else int(head.tokens[best]))
            chances.append(float(1 / np.exp(logits - logits[best]).sum()))
            features, following = features[-1:], [*following, drafts[-1]]
        assert list(guess.drafts.tokens) == drafts
        np.testing.assert_allclose(guess.chances, chances, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_long_prompt_only_the_window_is_read(
    make_llm: Make, heads: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_drafter, "WINDOW", 24)
    llm = make_llm(draft=draft_name(kind, heads), draft_tokens=3, chunk=16)
    drafter: Any = llm.engine.drafting.drafter  # type: ignore[attr-defined]
    rows, real = list[int](), drafter._features
    monkeypatch.setattr(drafter, "_features", lambda states: rows.append(len(states[0])) or real(states))
    out = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))[0]
    assert out.metrics.draft_tokens > 0
    assert sum(rows) <= 24 + 3, "of a prompt of 80 tokens"


def test_eagle3_reads_what_enters_three_layers(heads: dict[str, Path], model: Path, tmp_path: Path) -> None:
    config = load_model(model).config
    assert plan_head(heads["eagle3"], config, 64).hidden == (2, LAYERS // 2, LAYERS - 3)
    ids = "eagle_aux_hidden_state_layer_ids"
    outputs = make_eagle3(tmp_path / "a", config, 50, eagle_config={ids: [0, 2, 4]})
    assert plan_head(outputs, config, 64).hidden == (1, 3, 5)
    entered = make_eagle3(tmp_path / "b", config, 50, **{ids: [0, 2, 4]})
    assert plan_head(entered, config, 64).hidden == (0, 2, 4)


def test_a_head_that_knows_the_model_is_always_right(make_llm: Make, tmp_path: Path) -> None:
    """Of a model whose layers add nothing the next token hangs on the last one alone, which fc passes on."""
    path = make_checkpoint(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= 0
    save_file(tensors, path / "model.safetensors")
    head = make_draft(tmp_path / "head", load_model(path).config, final_norm=None)
    own = load_file(head / "model.safetensors")
    for name in own:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            own[name] *= 0
    width = len(tensors["model.norm.weight"])
    own["fc.weight"] = np.eye(width, 2 * width, dtype=np.float32)
    own["input_norm1.weight"] = tensors["model.norm.weight"].astype(np.float32)
    save_file(own, head / "model.safetensors")
    llm = make_llm(path, draft=f"eagle:{head}", draft_tokens=4)
    for out in llm.generate(PROMPTS, SamplingParams(max_tokens=21, temperature=0.0, ignore_eos=True)):
        assert out.metrics.accept_length == 5.0 and out.metrics.draft_tokens == out.metrics.accepted_tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leave_out": "fc.weight"}, "fc.weight in .* is missing, the model asks for"),
        ({"hidden_size": 32}, "hidden_size = 32, the model 64"),
        ({"draft_vocab_size": 60}, "d2t in .* is .50,., the model asks for .60,."),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}}, "states after .2, 3, 10. layers"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2]}}, "not three layers"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "scales its rotary angles"),
        ({"num_attention_heads": 2}, "o_proj.weight"),
        ({"num_key_value_heads": "many"}, "num_key_value_heads = 'many', no size"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps = 'x' is not a valid float"),
        ({"rms_norm_eps": [1e-5]}, "rms_norm_eps = .1e-05. is not a valid float"),
        ({"rope_theta": {}}, "rope_theta = {} is not a valid float"),
        ({"rope_theta": True}, "rope_theta = True is not a valid float"),
        ({"rope_theta": 0}, "rope_theta = 0.0 is outside 1 to 1e30"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    make_llm: Make, model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = make_eagle3(tmp_path / "head", load_model(model).config, 50, **change)
    with pytest.raises((CheckpointError, ConfigError, UnsupportedError), match=message):
        make_llm(draft=f"eagle:{folder}")


def test_a_number_that_a_head_leaves_open_is_the_usual_one(model: Path, tmp_path: Path) -> None:
    config = load_model(model).config
    found = plan_head(make_eagle3(tmp_path, config, 50, rms_norm_eps=None, rope_theta=None), config, 64)
    assert (found.config.rms_norm_eps, found.config.rope_theta) == (1e-6, 10000.0)


def test_maps_of_tokens_that_differ_are_told_by_their_hashes(model: Path, tmp_path: Path) -> None:
    config = load_model(model).config
    folder = make_eagle3(tmp_path / "head", config, 50)
    tensors = load_file(folder / "model.safetensors")
    tensors["d2t"][-1] -= 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"leads to other tokens \([0-9a-f]{12}\) than t2d"):
        plan_head(folder, config, 64)


def test_files_that_are_no_head_are_refused(make_llm: Make, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        make_llm(draft=f"eagle:{tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"no head .*mtp. train one"):
        make_llm(make_checkpoint(tmp_path / "plain" / "m"), draft="mtp")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which would be unpickled"):
        make_llm(draft=f"eagle:{tmp_path}")
    folder = make_draft(tmp_path / "q", load_model(model).config, final_norm=None)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "fc.qweight": tensors["fc.weight"]}, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"quantised \(fc.qweight\)"):
        make_llm(draft=f"eagle:{folder}")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "scale_depth": 9.0}))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"scale_depth = 9.0, the model 1.4"):
        make_llm(draft=f"eagle:{folder}")
