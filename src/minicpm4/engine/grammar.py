"""Answers that follow a grammar: a JSON schema, a regular expression, a Lark or GBNF grammar, a choice.

The package llguidance compiles them and says which tokens may come next; it is imported at the first use.
What does not compile is refused before any work, and whatever goes wrong later ends the request by name: no
answer is written without the grammar that it was asked for.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minicpm4.engine.grammar_text import READY, SQL, compile_grammar, line
from minicpm4.engine.params import SamplingParams
from minicpm4.errors import RequestError, UnsupportedError
from minicpm4.kernels.contract import Array
from minicpm4.text.replies import ReplyReader
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["READY", "SQL", "Grammar", "Grammars"]

MAX_KEPT = 32  # compiled grammars of a model
# Digits of a number in JSON, after which it ends where it may: more than a double holds. Small models run on.
MAX_DIGITS = 20
# What is added to the logits of eight tokens for each byte of a mask: -inf where a bit is 0. To look it up
# takes a tenth of the time of writing through a mask of single tokens.
_ALLOWED = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_ALLOWED, 0, -np.inf).astype(np.float32)
_GOING_ON = ("NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence")


class TextOf(Protocol):
    """What a grammar asks of a model's text. Raises TextError where there is none."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def replies(self) -> ReplyReader: ...


class Grammars:
    """Compiles grammars for a model, and keeps the last ones. For any thread.

    ``end_ids``: the tokens that may end an answer; ``vocab_size``: logits that the model has.
    """

    def __init__(self, text: TextOf, end_ids: Collection[int], vocab_size: int) -> None:
        self._text, self.end_ids, self.vocab_size = text, frozenset(end_ids), vocab_size
        self._lock = threading.RLock()
        self._vocabulary: _Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def check(self, params: SamplingParams) -> None:
        """Raise unless an answer can follow what ``params`` ask for: RequestError, which names the parameter
        and what in it is wrong; UnsupportedError without llguidance; TextError without a tokenizer."""
        if params.constraint is not None:
            self._compiled(params, params.constraint)

    def start(self, params: SamplingParams, prompt: Sequence[int]) -> Grammar | None:
        """What holds the answer to ``prompt`` to its grammar; None where it has none. Raises as ``check``."""
        if params.constraint is None:
            return None
        matcher = self._compiled(params, params.constraint).deep_copy()
        reasoning = self._text.replies.reasoning(prompt)
        return Grammar(params, matcher, self.vocabulary, reasoning.closing, reasoning.opening_id)

    @property
    def vocabulary(self) -> _Vocabulary:
        """Made at the first use: 0.7 s for 49,152 tokens."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _Vocabulary(self._text.tokenizer, self.end_ids, self.vocab_size)
            return self._vocabulary

    def _compiled(self, params: SamplingParams, name: str) -> Any:
        """The matcher, at its start. Nobody changes it: samples get copies."""
        value = getattr(params, name)
        key = name, value if isinstance(value, str) else json.dumps(value)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = compile_grammar(self.vocabulary.llg(name), name, value)
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


class Grammar:
    """Holds one sample to its grammar, from the end of the model's reasoning on: a Constraint.

    ``closing``: marks, one of which ends the reasoning that the prompt has opened; or that the answer opens
    if its first token is ``opening_id``. While the model reasons, only the end of the answer is forbidden.
    """

    active = True

    def __init__(
        self,
        params: SamplingParams,
        matcher: Any,
        vocabulary: _Vocabulary,
        closing: Sequence[str] = (),
        opening_id: int | None = None,
    ) -> None:
        self._name = params.constraint or ""
        self._bias, self._matcher, self._vocabulary = params.logit_bias, matcher, vocabulary
        self._closing = [mark.encode() for mark in closing]
        self._opening = opening_id
        self._tokens: list[int] = []
        self._numbers = _Numbers() if self._name == "json_schema" else None
        # The number of tokens before the grammar's first; None: the model reasons.
        self._start: int | None = None if closing and opening_id is None else 0

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        if self._start is None or self._may_open or self._matcher.is_error():
            return False
        if self._matcher.is_stopped():
            return True
        if self._vocabulary.end_ids or not self._matcher.is_accepting():
            return False
        tokens = np.unpackbits(self._mask(), bitorder="little")[: self._vocabulary.size]
        return not tokens.any()  # and there is no token by which to end

    def forced(self) -> int | None:
        """The token that comes next whatever the logits are; None where there is a choice, or none at all."""
        if self._start is None or self._may_open or self._matcher.is_stopped():
            return None
        tokens = self._matcher.compute_ff_tokens()
        if not tokens or tokens[0] >= self._vocabulary.size or self._bias.get(tokens[0]) == -np.inf:
            return None
        return int(tokens[0])

    def adjust(self, logits: Array) -> None:
        """See Processor. Raises RequestError where the grammar has become too hard, or allows no token."""
        if self._start is None:
            logits[self._vocabulary.not_while_reasoning(self._tail(), self._closing)] = -np.inf
            return
        mask = self._mask()
        if self._may_open:
            mask = mask.copy()
            mask[self._opening // 8] |= 1 << self._opening % 8  # type: ignore[operator]
        if not mask.any():
            raise RequestError(
                f"{self._name}: no token of the model's vocabulary can go on with the answer",
                "use another grammar, or another model",
            )
        added = self._vocabulary.added(mask)[: len(logits)]
        if self._numbers is not None and self._numbers.digits >= MAX_DIGITS:
            digits = self._vocabulary.digits
            before = added[digits]
            added[digits] = -np.inf
            if added.max() == -np.inf:  # the schema wants more of them
                added[digits] = before
        with np.errstate(invalid="ignore"):  # of an infinite logit, which the sampler refuses
            logits[: len(added)] += added
        logits[len(added) :] = -np.inf

    def accept(self, token: int) -> None:
        """See Processor. Raises RequestError for a token that the grammar does not allow."""
        opens = self._may_open and token == self._opening
        self._tokens.append(token)
        if opens:
            self._start = None
        elif self._start is None:
            if self._thought_ends():
                self._start = len(self._tokens)
        elif token not in self._vocabulary.end_ids:
            self._matcher.consume_token(token)
            self._check()
            if self._numbers is not None:
                self._numbers.read(self._vocabulary.bytes_of(token))

    def undo(self, n: int) -> None:
        """See Processor."""
        kept = len(self._tokens) - n
        if self._start is not None:
            taken = self._tokens[max(kept, self._start) :]
            consumed = sum(token not in self._vocabulary.end_ids for token in taken)
            if consumed:
                self._matcher.rollback(consumed)
                if self._numbers is not None:
                    self._numbers.undo(consumed)
            if kept < self._start:
                self._start = None
        del self._tokens[kept:]
        if not kept and self._opening is not None:
            self._start = 0

    @property
    def _may_open(self) -> bool:
        """Whether the next token may open a block of reasoning."""
        return self._opening is not None and not self._tokens

    def _mask(self) -> NDArray[np.uint8]:
        """Which tokens the grammar allows next: bit i % 8 of byte i // 8 is token i's."""
        bits = self._matcher.compute_bitmask()
        self._check()
        return np.frombuffer(bits, np.uint8)

    def _tail(self) -> bytes:
        """The last text of the reasoning: what a closing mark may have begun in."""
        longest = max(map(len, self._closing))
        return b"".join(map(self._vocabulary.bytes_of, self._tokens[-longest:]))

    def _thought_ends(self) -> bool:
        tail = self._tail()
        before = len(tail) - len(self._vocabulary.bytes_of(self._tokens[-1]))
        return any(tail.find(mark, max(before - len(mark) + 1, 0)) >= 0 for mark in self._closing)

    def _check(self) -> None:
        # In both cases the matcher would allow an end token, as if the answer were whole.
        if self._matcher.is_error() or self._matcher.stop_reason() not in _GOING_ON:
            why = line(self._matcher.get_error() or self._matcher.stop_reason())
            raise RequestError(f"{self._name}: the answer cannot go on: {why}", "use another grammar")


class _Numbers:
    """Reads JSON token by token, and counts the digits of the number in which it ends."""

    def __init__(self) -> None:
        self._states = [(0, False, False)]  # digits, in a string, behind a backslash: after each token

    @property
    def digits(self) -> int:
        return self._states[-1][0]

    def read(self, text: bytes) -> None:
        digits, inside, escaped = self._states[-1]
        for byte in text:
            if inside:
                inside, escaped = escaped or byte != 0x22, not escaped and byte == 0x5C
            elif 0x30 <= byte <= 0x39:
                digits += 1
            elif byte in b"eE" and digits:  # an exponent has two
                digits = MAX_DIGITS - 2
            elif byte not in b".+-":
                digits, inside = 0, byte == 0x22
        self._states.append((digits, inside, escaped))

    def undo(self, n: int) -> None:
        del self._states[len(self._states) - n :]


class _Vocabulary:
    """A model's tokens as llguidance wants them.

    Without an end token it has one behind all: answers end there where nothing else can follow.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], size: int) -> None:
        self._tokenizer, self.end_ids, self.size = tokenizer, end_ids, size
        self._llg: Any = None
        self._added = np.empty((0, 8), np.float32)  # new memory each time would cost more than filling it
        self._across: dict[bytes, dict[bytes, list[int]]] = {}
        self._lock = threading.Lock()

    def added(self, mask: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What is added to the logits for a mask; until the next call. For one thread at a time."""
        if len(self._added) != len(mask):
            self._added = np.empty((len(mask), 8), np.float32)
        np.take(_ADDED, mask, axis=0, out=self._added, mode="clip")
        return self._added.reshape(-1)

    def bytes_of(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def llg(self, name: str) -> Any:
        """The LLTokenizer. Raises UnsupportedError, which names the parameter ``name``."""
        if self._llg is None:
            try:
                package = import_module("llguidance")
            except ImportError as error:
                raise UnsupportedError(
                    f"{name} needs the package llguidance ({error})",
                    "in the checkout: pip install '.[grammar]', or: pip install 'llguidance>=1.9,<2'",
                ) from error
            source = _Source(self._tokenizer, self.end_ids, self.size)
            self._llg = source.llg = package.LLTokenizer(
                package.TokenizerWrapper(source),
                eos_token=sorted(self.end_ids) or [self.size],
            )
        return self._llg

    @cached_property
    def digits(self) -> NDArray[np.int64]:
        """The tokens that begin with a digit."""
        tokens = range(min(self._tokenizer.vocab_size, self.size))
        return np.array([token for token in tokens if self.bytes_of(token)[:1].isdigit()], np.int64)

    def not_while_reasoning(self, tail: bytes, closing: Sequence[bytes]) -> list[int]:
        """Tokens that may not follow reasoning which ends in ``tail``: end tokens, and those that would close
        it and go on with something else than white space."""
        banned = [token for token in self.end_ids if token < self.size]
        for mark in closing:
            for rest, tokens in self._tokens_across(mark).items():
                if tail.endswith(mark[: len(mark) - len(rest)]):
                    banned += tokens
        return banned

    def _tokens_across(self, mark: bytes) -> dict[bytes, list[int]]:
        """Of each end of a mark, the tokens that begin with it and hold more than white space behind; of the
        whole mark, those that hold it anywhere."""
        with self._lock:
            if mark not in self._across:
                found: dict[bytes, list[int]] = {}
                ends = [mark[i:] for i in range(1, len(mark))]
                for token in range(min(self._tokenizer.vocab_size, self.size)):
                    text = self.bytes_of(token)
                    for end in ends if text[:1] in mark else ():
                        if text.startswith(end) and text[len(end) :].strip():
                            found.setdefault(end, []).append(token)
                    if mark in text and text.partition(mark)[2].strip():
                        found.setdefault(mark, []).append(token)
                self._across[mark] = found
            return self._across[mark]


class _Source:
    """What TokenizerWrapper asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], size: int) -> None:
        self.eos_token_id = min(end_ids, default=size)
        self.bos_token_id = tokenizer.bos_token_id
        count = min(tokenizer.vocab_size, size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(count)]
        self.tokens += [b""] * (max(size, *end_ids) + 1 - count if end_ids else size - count)
        special = {*tokenizer.control_tokens.values(), *end_ids}
        if not end_ids:
            self.tokens.append(b"<end>")
            special.add(size)
        self.special_token_ids = sorted(token for token in special if token < len(self.tokens))
        self._tokenizer, self.llg = tokenizer, None

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of ``text`` in the middle of an answer, the bytes of which are those of ``text``."""
        if isinstance(text, bytes):  # TokenizerWrapper asks which of the two we take
            raise TypeError("text, not bytes")
        ids = self._tokenizer.encode_after(text)
        if self.llg is not None and b"".join(map(self._tokenizer.token_bytes, ids)) != text.encode():
            ids = self.llg.greedy_tokenize(text)  # normalised, or with no tokens for a character
        return ids
