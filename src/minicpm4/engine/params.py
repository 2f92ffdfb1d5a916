"""How tokens are chosen and when a request ends. Integers and floats only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError

MAX_SAMPLES = 256
MAX_STOPS = 64
MAX_STOP_LENGTH = 4096  # characters
MAX_LOGPROBS = 1000
SUGGESTED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Settings of one request, applied to the logits in this order.

    ``logit_bias`` is added; ``repetition_penalty`` (CTRL, arXiv 1909.05858) divides the positive and
    multiplies the negative logits of tokens in prompt or output; ``presence_penalty`` and
    ``frequency_penalty`` subtract, once and per occurrence, from tokens of the output;
    ``temperature`` divides (0: the best token, lowest id on a tie, and no filter matters); ``top_k``
    keeps the k best (0 or -1: all); ``top_p`` the smallest set that holds at least that mass;
    ``min_p`` those at least that fraction as likely as the best.

    ``max_tokens`` None: up to the context. ``min_tokens`` bans end tokens before that many tokens
    (a stop string still ends). ``stop`` strings are cut from the text, the tokens of the checkpoint
    that end a turn are too unless ``ignore_eos``. ``seed`` makes a request repeatable; sample i of
    ``n`` has its own stream. ``logprobs``: report the chosen token's log probability and this many
    of the best, under the model's own distribution, before everything above.

    Raises ConfigError.
    """

    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        for name in _FLOATS:
            _set(self, name, _number(name, getattr(self, name)))
        self._check_lengths()
        self._check_filters()
        self._check_ends()
        _set(self, "logit_bias", _bias(self.logit_bias))
        seed = self.seed
        require(seed is None or type(seed) is int, f"seed = {seed!r} is not an integer")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Make one from options by name; an unknown name is refused. Raises ConfigError."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"sampling has no parameter {name!r}", suggest(str(name), known))
        return cls(**values)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 1 << 31)
        _integer("min_tokens", self.min_tokens, 0, 1 << 31)
        require(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            f"min_tokens = {self.min_tokens} is above max_tokens = {self.max_tokens}",
        )
        _integer("n", self.n, 1, MAX_SAMPLES)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    def _check_filters(self) -> None:
        require(0 <= self.temperature <= 100, f"temperature = {self.temperature} is outside 0 to 100")
        _integer("top_k", self.top_k, -1, 1 << 31)
        _set(self, "top_k", max(self.top_k, 0))
        require(0 < self.top_p <= 1, f"top_p = {self.top_p} is outside 0 (excluded) to 1", "1 turns it off")
        require(0 <= self.min_p <= 1, f"min_p = {self.min_p} is outside 0 to 1", "0 turns it off")
        penalty = self.repetition_penalty
        require(0 < penalty <= 100, f"repetition_penalty = {penalty} is outside 0 (excluded) to 100")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(-2 <= value <= 2, f"{name} = {value} is outside -2 to 2")

    def _check_ends(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        require(
            isinstance(stop, Sequence) and all(isinstance(s, str) for s in stop),
            f"stop = {self.stop!r} is not a string or a list of strings",
        )
        require(len(stop) <= MAX_STOPS, f"{len(stop)} stop strings were given", f"at most {MAX_STOPS}")
        require(all(stop), "a stop string is empty", "leave it out")
        longest = max(map(len, stop), default=0)
        require(
            longest <= MAX_STOP_LENGTH,
            f"a stop string has {longest} characters",
            f"at most {MAX_STOP_LENGTH}",
        )
        _set(self, "stop", tuple(stop))
        ids = self.stop_token_ids
        require(
            isinstance(ids, Sequence) and all(type(i) is int and i >= 0 for i in ids),
            f"stop_token_ids = {ids!r} is not a list of token ids",
        )
        _set(self, "stop_token_ids", tuple(ids))
        require(type(self.ignore_eos) is bool, f"ignore_eos = {self.ignore_eos!r} is not true or false")


_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)


def _number(name: str, value: Any) -> float:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"{name} = {value!r} is not a number")
    return float(value)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    require(type(value) is int, f"{name} = {value!r} is not an integer")
    require(low <= value <= high, f"{name} = {value} is outside {low} to {high}")


def _bias(value: Any) -> dict[int, float]:
    require(isinstance(value, Mapping | None), f"logit_bias = {value!r} is not a table of token id to bias")
    result = {}
    for token, bias in (value or {}).items():
        require(type(token) is int and token >= 0, f"logit_bias has the key {token!r}, not a token id")
        right = isinstance(bias, int | float) and not isinstance(bias, bool) and bias < math.inf
        require(right, f"logit_bias of token {token} is {bias!r}", "use a number, or -inf to forbid it")
        result[token] = float(bias)
    return result


def suggested_sampling(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of SamplingParams that a generation_config.json suggests; do_sample = false: the best token.

    Raises ConfigError for values that SamplingParams refuses.
    """
    given = {name: table[name] for name in SUGGESTED if table.get(name) is not None}
    if table.get("do_sample") is False:
        given["temperature"] = 0.0
    SamplingParams(**given)
    return given
