"""Each filter against a brute-force twin that sorts everything, and frequencies against the exact law."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.params import SamplingParams
from minicpm4.engine.processors import adjusted, make_processors
from minicpm4.engine.sampler import Draw, SampleState, distribution, log_probabilities
from minicpm4.engine.sampler import sample as draw_token
from minicpm4.errors import CheckpointError, RequestError
from minicpm4.kernels.ref import RefOps

OPS = RefOps()


def state(prompt: tuple[int, ...] = (), ends: tuple[int, ...] = (), **options: Any) -> SampleState:
    params = SamplingParams(**options)
    return SampleState(params, np.random.default_rng(7), make_processors(params, prompt, ends))


def sample(ops: Any, logits: np.ndarray, one: SampleState) -> int:
    return draw_token(ops, logits, one).token


def adjust(one: SampleState, logits: list[float]) -> np.ndarray:
    return adjusted(np.array(logits, np.float32), one.processors)


def random_logits(seed: int, size: int = 50, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def probabilities(logits: np.ndarray, **options: Any) -> np.ndarray:
    """What the sampler would draw from, spread over the vocabulary."""
    ids, weights = distribution(OPS, logits, SamplingParams(**options))
    full = np.zeros(len(logits))
    full[np.arange(len(logits)) if ids is None else ids] = weights
    return full / full.sum()


def brute_force(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Temperature, top_k, top_p, min_p one after another over the sorted vocabulary, in float64."""
    p = np.exp(logits.astype(np.float64) / temperature - (logits / temperature).max())
    order = np.argsort(-logits, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@settings(max_examples=300)
@given(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.floats(0.1, 5),
    st.integers(0, 310),
    st.floats(0.01, 0.999) | st.just(1.0),
    st.floats(0, 1),
)
def test_filters_equal_brute_force(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(seed, size)
    got = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = brute_force(logits, temperature, top_k, top_p, min_p)
    if not np.allclose(got, expected, atol=1e-6):
        # Only a candidate whose mass lies on the boundary to rounding may differ.
        assert abs((got > 0).sum() - (expected > 0).sum()) <= 1


def test_nucleus_grows_past_its_first_candidates() -> None:
    flat = random_logits(1, 3000, 0.01)
    assert (probabilities(flat, top_p=0.9) > 0).sum() == pytest.approx(2700, abs=15)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"top_k": 8},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.9},
    ],
)
def test_frequencies_follow_the_exact_distribution(options: dict[str, Any]) -> None:
    logits, draws = random_logits(2, 40, 1.5), 6000
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    expected = brute_force(logits, **full) * draws
    one = state(**options)
    counts = np.bincount([sample(OPS, logits, one) for _ in range(draws)], minlength=40)
    assert counts[expected == 0].sum() == 0
    kept = expected >= 5
    chi2 = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum()
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom), "4 standard deviations, fixed seed"


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    assert sample(OPS, np.array([1, 5, 5, 0], np.float32), state(temperature=0)) == 1


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = random_logits(3)
    assert sample(OPS, logits, state(temperature=1e-300)) == int(logits.argmax())


@pytest.mark.parametrize(("draw", "token"), [(0.0, 1), (1.0 - 2**-53, 2)])
def test_the_ends_of_the_draw_hit_no_forbidden_token(draw: float, token: int) -> None:
    one = state()
    one.rng = SimpleNamespace(random=lambda: draw)  # type: ignore[assignment]
    assert sample(OPS, np.array([-np.inf, 0, 0, -np.inf], np.float32), one) == token


def test_logits_stay_as_they_are() -> None:
    logits = random_logits(4)
    before = logits.copy()
    sample(OPS, logits, state((3, 4), logit_bias={1: 50.0}, repetition_penalty=1.5))
    np.testing.assert_array_equal(logits, before)


def test_bias_is_added_and_can_forbid() -> None:
    logits = np.array([0, 1, 2], np.float32)
    assert sample(OPS, logits, state(temperature=0, logit_bias={0: 10.0})) == 0
    assert sample(OPS, logits, state(temperature=0, logit_bias={2: float("-inf")})) == 1


def test_repetition_penalty_covers_prompt_and_output() -> None:
    one = state(prompt=(0,), repetition_penalty=2.0)
    one.accept(1)
    np.testing.assert_array_equal(adjust(one, [4, -4, 4]), [2, -8, 4])


def test_presence_and_frequency_cover_the_output_only() -> None:
    one = state(prompt=(0,), presence_penalty=0.5, frequency_penalty=0.25)
    for token in (1, 1, 2):
        one.accept(token)
    np.testing.assert_array_equal(adjust(one, [0] * 4), [0, -1.0, -0.75, 0])


def test_end_tokens_are_banned_until_min_tokens() -> None:
    one, logits = state(ends=(2,), min_tokens=2, temperature=0), np.array([0, 1, 9], np.float32)
    chosen = []
    for _ in range(3):
        chosen.append(sample(OPS, logits, one))
        one.accept(chosen[-1])
    assert chosen == [1, 1, 2]


def test_same_seed_draws_the_same() -> None:
    logits = random_logits(5)
    first, second = state(), state()
    assert [sample(OPS, logits, first) for _ in range(50)] == [sample(OPS, logits, second) for _ in range(50)]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = random_logits(6)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    got = log_probabilities(OPS, logits, Draw(3, -0.5), 5)
    assert got.token_id == 3 and got.logprob == pytest.approx(expected[3], abs=1e-5)
    assert list(got.top) == np.argsort(-logits)[:5].tolist()
    assert got.top[int(logits.argmax())] == pytest.approx(expected.max(), abs=1e-5)


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "logit_bias": {3: 2.0, 5: float("-inf")}},
    {"top_k": 8, "top_p": 0.9},
    {"min_p": 0.2, "repetition_penalty": 1.5, "presence_penalty": 0.5},
]


@pytest.mark.parametrize("options", FILTERS)
def test_a_draw_carries_its_log_probability_in_what_it_was_drawn_from(options: dict[str, Any]) -> None:
    logits, one = random_logits(8, 40), state((1, 2), **options)
    full = probabilities(adjusted(logits, one.processors), **options)
    for _ in range(20):
        draw = draw_token(OPS, logits, one)
        assert draw.logprob == pytest.approx(np.log(full[draw.token]), abs=1e-9)


def test_a_greedy_draw_was_certain() -> None:
    assert draw_token(OPS, random_logits(9), state(temperature=0)).logprob == 0.0


def test_no_top_logprobs_were_asked() -> None:
    assert log_probabilities(OPS, random_logits(7), Draw(0, 0.0), 0).top == {}


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no finite numbers"):
        sample(OPS, np.array([0, np.nan, 1], np.float32), state())


def test_forbidding_everything_is_refused() -> None:
    bias = dict.fromkeys(range(3), float("-inf"))
    with pytest.raises(RequestError, match="forbid every token"):
        sample(OPS, np.zeros(3, np.float32), state(logit_bias=bias))
