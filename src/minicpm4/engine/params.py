"""How tokens are chosen and when a request ends. Integers and floats only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from minicpm4.config.gguf import SAMPLING_KEYS
from minicpm4.config.strict import check_choice, check_integer, nearest_keywords, require, shown, suggest
from minicpm4.engine.calls import Calls
from minicpm4.engine.schemas import checked_schema
from minicpm4.errors import ConfigError
from minicpm4.text.stream import check_stops

MAX_SAMPLES = 256
MAX_LOGPROBS = 1000
MAX_BIAS = 1e4
MAX_GRAMMAR_CHARS = 1 << 17  # of a grammar, a regular expression, or all choices
MAX_CHOICES = 10_000
FORMS = ("json_schema", "regex", "grammar", "choice")
"""Parameters that say what a text may be: at most one of them."""
CONSTRAINTS = (*FORMS, "calls")
# What decides how a token is drawn, and where each is off.
OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
SUGGESTED = tuple(OFF)


@dataclass(frozen=True, slots=True)
class Range:
    """Where a number may lie: ``least``, which ``above`` excludes, to ``most``."""

    least: float
    most: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        return f"{self.least:g}{' (excluded)' if self.above else ''} to {self.most:g}"


_PENALTIES = Range(-2, 2)
RANGES = {
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0.01, 100),
    "presence_penalty": _PENALTIES,
    "frequency_penalty": _PENALTIES,
}
# Whole numbers.
LEAST = {"max_tokens": 1, "min_tokens": 0, "top_k": -1}
MOST = 1 << 31  # of all three
# Where neither caller nor checkpoint says: benchmarks/sampling_defaults.py compares it with others' defaults.
FALLBACK: dict[str, Any] = {"temperature": 0.7, "top_p": 0.7}


_OPEN: Any = None  # not given
F = TypeVar("F", bound=Callable[..., Any])


@nearest_keywords
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Settings of one request, applied to the logits in this order.

    ``logit_bias`` (-1e4 to 1e4, or -inf) is added; ``repetition_penalty`` (0.01 to 100; CTRL, arXiv
    1909.05858) divides the positive and multiplies the negative logits of tokens in prompt or output;
    ``presence_penalty`` and ``frequency_penalty`` (-2 to 2) subtract, once and per occurrence, from tokens of
    the output;
    ``temperature`` divides (0: the best token, lowest id on a tie, and no filter matters); ``top_k``
    keeps the k best (0 or -1: all); ``top_p`` the smallest set that holds at least that mass;
    ``min_p`` those at least that fraction as likely as the best.

    ``max_tokens`` None: up to the context. ``min_tokens`` bans end tokens before that many tokens (a stop
    string still ends). ``stop`` strings are cut from the text, the tokens of the checkpoint that end a turn
    are too unless ``ignore_eos``. A stop string may name special tokens by their spelling ("<|im_start|>"),
    alone or among other text; ``skip_special_tokens`` False shows them in the text, but never the token that
    ended it. ``shows_marks`` shows those alone that mark thoughts and calls, as ``reply_stream`` needs them;
    stop strings are found as if they were left out. ``seed`` makes a request repeatable; sample i of ``n``
    has its own stream. ``logprobs``: report the chosen token's log probability and this many of the best,
    under the model's own distribution, before everything above; and the chosen token's under the distribution
    that it was drawn from, after everything above (TokenLogprobs).

    One of four may say what the answer is, all of it after reasoning if the model thinks first:
    ``json_schema`` (True or {}: any JSON object), ``regex`` (matches all of it; Rust's syntax, without
    look-around), ``grammar`` (text in Lark's or GBNF's notation, or "sql") or ``choice`` (one of these
    strings); ``calls`` what the calls of tools in it are (engine/calls.py). ``calls`` that are not forced
    beside one of the four: the answer is calls and nothing else, or has that form. No other token is drawn,
    whatever the settings above say, and end tokens only where the answer is whole; ``max_tokens`` and
    ``stop`` cut it all the same. ``min_tokens`` and ``ignore_eos`` are refused beside them, but for calls
    alone that are not forced.
    Tokens about which there is no choice take no pass, except with ``logprobs``. It needs the package
    llguidance (engine/grammar.py).

    ``attention``, where the model was loaded with sparse attention: "dense", "sparse" (from the first token
    on), or "auto", as it was loaded. What was read one way is not found in the cache by what reads another.

    Of ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``repetition_penalty`` name none, and the model's
    own suggestion is taken (generation_config.json; ``general.sampling`` of a .gguf file), else temperature
    0.7 with top_p 0.7. Name any, and those that are left out are off: temperature 1, no filter, no penalty.

    Raises ConfigError.
    """

    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = _OPEN
    top_k: int = _OPEN
    top_p: float = _OPEN
    min_p: float = _OPEN
    repetition_penalty: float = _OPEN
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    skip_special_tokens: bool = True
    shows_marks: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    json_schema: Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    calls: Calls | None = None
    attention: str | None = None
    is_open: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether the caller left to the model how tokens are drawn."""

    def __post_init__(self) -> None:
        left_out = [name for name in OFF if getattr(self, name) is None]
        _set(self, "is_open", len(left_out) == len(OFF))
        base = {**OFF, **FALLBACK} if self.is_open else OFF
        for name in left_out:
            _set(self, name, base[name])
        for name in RANGES:
            _set(self, name, _number(name, getattr(self, name)))
        if self.attention is not None:
            check_choice("attention", self.attention, ("auto", "dense", "sparse"))
        self._check_lengths()
        self._check_filters()
        self._check_ends()
        self._check_constraint()
        _set(self, "logit_bias", _bias(self.logit_bias))
        seed = self.seed
        require(seed is None or type(seed) is int, f"seed = {shown(seed)} is not an integer")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def constraint(self) -> str | None:
        """Which of CONSTRAINTS is given, the form first."""
        return self.form or (None if self.calls is None else "calls")

    @property
    def form(self) -> str | None:
        """Which of FORMS is given."""
        return next((name for name in FORMS if getattr(self, name) is not None), None)

    def drawn(self) -> str:
        """How tokens are drawn, in words: ``"temperature 0.7, top_p 0.7"``."""
        if self.greedy:
            named = {"the likeliest token": ""}
        else:
            named = {"temperature": f" {self.temperature:g}"}
            filters = ("top_k", "top_p", "min_p")
            named |= {
                name: f" {getattr(self, name):g}" for name in filters if getattr(self, name) != OFF[name]
            }
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            if getattr(self, name) != OFF.get(name, 0.0):
                named[name] = f" {getattr(self, name):g}"
        return ", ".join(name + value for name, value in named.items())

    def suggested(self, suggestion: Mapping[str, Any]) -> SamplingParams:
        """These, drawn as ``suggestion`` says (settings by name; it may be empty) where they are open."""
        if not (self.is_open and suggestion):
            return self
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return SamplingParams(**{**given, **OFF, **suggestion})

    def changed(self, **changes: Any) -> SamplingParams:
        """These with others in their place; what was left open stays so. Raises ConfigError."""
        left_out = OFF if self.is_open else ()
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in left_out}
        return SamplingParams(**{**given, **changes})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Make one from options by name; an unknown name is refused. Raises ConfigError."""
        known = [f.name for f in fields(cls) if f.init]
        for name in values:
            if name not in known:
                raise ConfigError(f"sampling has no parameter {name!r}", suggest(str(name), known))
        return cls(**values)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, LEAST["max_tokens"], MOST)
        check_integer("min_tokens", self.min_tokens, LEAST["min_tokens"], MOST)
        require(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            f"min_tokens = {self.min_tokens} is above max_tokens = {self.max_tokens}",
        )
        check_integer("n", self.n, 1, MAX_SAMPLES)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    def _check_filters(self) -> None:
        check_integer("top_k", self.top_k, LEAST["top_k"], MOST)
        _set(self, "top_k", max(self.top_k, 0))
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            remedy = f"{OFF.get(name, 0):g} turns it off" if name != "temperature" else ""
            require(value in allowed, f"{name} = {value} is outside {allowed}", remedy)

    def _check_ends(self) -> None:
        _set(self, "stop", check_stops(self.stop, ConfigError))
        ids = self.stop_token_ids
        require(
            isinstance(ids, Sequence) and all(type(i) is int and i >= 0 for i in ids),
            f"stop_token_ids = {shown(ids)} is not a list of token ids",
        )
        _set(self, "stop_token_ids", tuple(ids))
        for name in ("ignore_eos", "skip_special_tokens", "shows_marks"):
            value = getattr(self, name)
            require(type(value) is bool, f"{name} = {shown(value)} is not true or false")

    def _check_constraint(self) -> None:
        if self.json_schema is not None:
            _set(self, "json_schema", checked_schema("json_schema", self.json_schema))
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None:
                _check_grammar(name, getattr(self, name))
        if self.choice is not None:
            _set(self, "choice", _choices(self.choice))
        calls = self.calls
        require(
            calls is None or isinstance(calls, Calls),
            f"calls = {shown(calls)} is not Calls",
            "give minicpm4.Calls(tools=…)",
        )
        free = calls is not None and not calls.forced
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        held = [name for name in given if name != "calls" or not free]
        require(
            len(held) < 2, f"{' and '.join(held)} are given together", "an answer has one of them at most"
        )
        for name in ("min_tokens", "ignore_eos"):
            value = getattr(self, name)
            require(
                not (held and value),
                f"{name} = {value} is given together with {', '.join(held)}",
                f"leave out {name}: the answer ends where it is whole",
            )


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)


def _number(name: str, value: Any) -> float:
    require(math.isfinite(_float(value)), f"{name} = {shown(value)} is not a number")
    return float(value)


def _float(value: Any) -> float:
    """A number as a float; NaN where it is none, or none of that size."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _bias(value: Any) -> dict[int, float]:
    require(
        isinstance(value, Mapping | None), f"logit_bias = {shown(value)} is not a table of token id to bias"
    )
    result = {}
    for token, bias in (value or {}).items():
        require(type(token) is int and token >= 0, f"logit_bias has the key {shown(token)}, not a token id")
        result[token] = _float(bias)
        require(
            abs(result[token]) <= MAX_BIAS or result[token] == -math.inf,
            f"logit_bias of token {shown(token)} is {shown(bias)}",
            f"use a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, or -inf to forbid the token",
        )
    return result


def _check_grammar(name: str, text: Any) -> None:
    require(isinstance(text, str) and bool(text), f"{name} = {shown(text)} is not a text")
    require(
        len(text) <= MAX_GRAMMAR_CHARS,
        f"{name} has {len(text):,} characters, the limit is {MAX_GRAMMAR_CHARS:,}",
    )
    require(
        not any("\ud800" <= char <= "\udfff" for char in text),
        f"{name} holds a lone surrogate",
        "write whole characters",
    )


def _choices(value: Any) -> tuple[str, ...]:
    right = isinstance(value, Sequence) and not isinstance(value, str)
    require(right and len(value) > 0, f"choice = {shown(value)} is not a list of strings")
    require(len(value) <= MAX_CHOICES, f"choice has {len(value):,} strings, the limit is {MAX_CHOICES:,}")
    for i, one in enumerate(value):
        require(isinstance(one, str) and bool(one), f"choice[{i}] = {shown(one)} is not a text")
    _check_grammar("choice", "".join(value))
    return tuple(dict.fromkeys(value))


def suggested_by_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of SamplingParams that the metadata of a GGUF file suggest (``general.sampling``).

    Raises ConfigError for values that SamplingParams refuses.
    """
    return suggested_sampling({name: metadata.get(key) for key, name in SAMPLING_KEYS.items()})


def gguf_sampling(suggested: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``suggested_by_gguf``."""
    kinds = {"top_k": int}
    return {
        key: kinds.get(name, float)(suggested[name])
        for key, name in SAMPLING_KEYS.items()
        if name in suggested
    }


def suggested_sampling(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of SamplingParams that a generation_config.json suggests; do_sample = false: the best token.

    Raises ConfigError for values that SamplingParams refuses.
    """
    given = {name: table[name] for name in SUGGESTED if table.get(name) is not None}
    if table.get("do_sample") is False:
        given["temperature"] = 0.0
    SamplingParams(**given)
    return given


def nearest_or_sampling(made: F) -> F:
    """As ``nearest_keywords``; a word that belongs into SamplingParams is told so."""
    options = {f.name: f"params=SamplingParams({f.name}=...)" for f in fields(SamplingParams) if f.init}
    return nearest_keywords(made, options)
