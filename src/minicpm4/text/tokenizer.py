"""Text to token ids and back, over the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minicpm4.errors import RequestError
from minicpm4.text.bounds import MAX_TEXT_BYTES
from minicpm4.text.guard import ControlGuard, Spellings, alternatives
from minicpm4.text.library import library
from minicpm4.text.pieces import SPACE, PieceCodec, codec_of

__all__ = ["END_SPELLINGS", "Tokenizer"]

_CANNOT = "the tokenizer cannot encode this text"
# Many checkpoints name only one end token. These spellings end a turn or a text wherever they exist.
END_SPELLINGS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "</s>",
)


class Tokenizer:
    """A checkpoint's tokenizer: encoding with its begin and end tokens, exact decoding by bytes.

    ``backend``: the ``tokenizers.Tokenizer`` underneath (vocabulary, merges, added tokens).
    ``prefix_ids``, ``suffix_ids``: what ``encode`` puts around a text (BOS, EOS).
    ``dummy_prefix``: a space is put before a text, and before text that follows one of
    ``prefix_after`` (spellings), as SentencePiece does; False where the backend does it itself.
    ``prefix_once``: before a text only, and not where it begins with a space.
    ``trim``: spaces at both ends of a text are dropped first (SentencePiece's
    remove_extra_whitespaces). ``escape``: spaces become ▁ before the backend looks for added
    tokens, which may hold ▁.

    Made by ``load_tokenizer`` and ``tokenizer_from_gguf``. Safe to use from several threads.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        codec: PieceCodec | None = None,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        prefix_ids: Iterable[int] = (),
        suffix_ids: Iterable[int] = (),
        dummy_prefix: bool = False,
        prefix_once: bool = False,
        trim: bool = False,
        escape: bool = False,
        prefix_after: Collection[str] = (),
    ) -> None:
        self.backend = backend
        self.codec = codec or codec_of(backend)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.prefix_ids = list(prefix_ids)
        self.suffix_ids = list(suffix_ids)
        self._dummy_prefix, self._trim, self._escape = dummy_prefix, trim, escape
        self._prefix_once = prefix_once
        self._added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self.vocab_size = max([backend.get_vocab_size(False), *(i + 1 for i in self._added)])
        self._prefix_after = frozenset(prefix_after)
        self._breaks = alternatives(self._prefix_after)
        self._blanks = {t.content: (t.lstrip, t.rstrip) for t in self._added.values() if t.lstrip or t.rstrip}
        self._bytes: dict[int, bytes] = {}
        self._lock = threading.Lock()

    @property
    def is_plain(self) -> bool:
        """Whether the backend alone encodes as this does: a tokenizer.json holds all of it."""
        return not (self._dummy_prefix or self._trim or self._escape)

    def with_ends(self, ids: Iterable[int]) -> Tokenizer:
        """This tokenizer with end tokens ``ids`` beside its own, after them."""
        made = copy(self)  # what was made of the end tokens is made anew
        for name in (
            "control_tokens",
            "spellings",
            "_guard",
            "_guard_breaks",
            "_guard_blanks",
        ):  # made of the end tokens
            made.__dict__.pop(name, None)
        made.eos_token_ids = tuple(dict.fromkeys([*self.eos_token_ids, *ids]))
        made._lock = threading.Lock()
        return made

    # -- encoding ---------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``, with the checkpoint's BOS/EOS unless ``add_special_tokens`` is False.

        ``parse_special``: whether control tokens spelled in ``text`` (``<|im_end|>``) become those
        tokens; pass False for text that is not trusted. A BOS that ``text`` starts with is not
        doubled. Raises RequestError for text over 64 MiB or with lone surrogates.
        """
        self.check_text(text)
        if parse_special:
            prepared = self._prepare(text, self._breaks, self._blanks)
            with library(_CANNOT):
                ids = self.backend.encode(prepared, add_special_tokens=False).ids
        else:
            ids = self.encode_guarded(text)
        return self.with_special_tokens(ids) if add_special_tokens else ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode(text, parse_special=False)`` of each text, on all cores, with nothing put around it."""
        spelled = alternatives(self.control_tokens)
        plain = [i for i, text in enumerate(texts) if spelled is None or not spelled.search(text)]
        for i in plain:
            self.check_text(texts[i])
        prepared = [self._prepare(texts[i], self._breaks, self._blanks) for i in plain]
        with library(_CANNOT):
            encoded = self.backend.encode_batch_fast(prepared, add_special_tokens=False)
        found = dict(zip(plain, (one.ids for one in encoded), strict=True))
        return [
            found[i] if i in found else self.encode(text, add_special_tokens=False, parse_special=False)
            for i, text in enumerate(texts)
        ]

    def encode_guarded(self, text: str) -> list[int]:
        """Token ids of ``text`` in which only the aliases of ``guard`` become control tokens."""
        prepared = self._prepare(text, self._guard_breaks, self._guard_blanks)
        with library(_CANNOT):
            return self.guard.encode(prepared)

    def encode_after(self, text: str) -> list[int]:
        """``encode_guarded`` of text that goes on after other text: without the space that some tokenizers
        put at the start of one."""
        for before in ("a", "\n"):
            alone, both = self.encode_guarded(before), self.encode_guarded(before + text)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self.encode_guarded(text)

    def missing_prefix(self, ids: list[int]) -> list[int]:
        """What is to be put before ``ids`` so that they begin with ``prefix_ids`` once: those, or nothing."""
        before = self.prefix_ids
        return [] if ids[: len(before)] == before else list(before)

    def with_prefix(self, ids: list[int]) -> list[int]:
        """``ids`` with the begin token, where the checkpoint has one, exactly once; never an end token."""
        return [*self.missing_prefix(ids), *ids]

    def with_special_tokens(self, ids: list[int]) -> list[int]:
        """``ids`` between BOS and EOS as the checkpoint says; those already there are not doubled."""
        after = self.suffix_ids
        if after and ids[-len(after) :] == after:
            after = []
        return [*self.with_prefix(ids), *after]

    @staticmethod
    def check_text(text: str) -> None:
        """Raise RequestError unless ``text`` is a str that can be encoded."""
        if not isinstance(text, str):
            raise RequestError(f"the text is a {type(text).__name__}, not a str")
        try:
            size = len(text) if text.isascii() else len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text holds a lone surrogate at character {error.start}", "it is not valid Unicode"
            ) from None
        if size > MAX_TEXT_BYTES:
            raise RequestError(f"the text has {size} bytes, the limit is {MAX_TEXT_BYTES}", "split it")

    def _prepare(self, text: str, breaks: object, blanks: Mapping[str, tuple[bool, bool]]) -> str:
        """``text`` as the backend takes it. ``breaks`` finds tokens; ``blanks``: which of them take along the
        blanks before them, and after."""
        if not (self._dummy_prefix or self._trim or self._escape):
            return text
        pieces = breaks.split(text) if breaks is not None else [text]  # type: ignore[attr-defined]
        # split() with one group: texts at even places, the spellings between them at odd ones.
        for i in range(1, len(pieces), 2) if blanks else ():
            before, after = blanks.get(pieces[i], (False, False))
            pieces[i - 1] = pieces[i - 1].rstrip() if before else pieces[i - 1]
            pieces[i + 1] = pieces[i + 1].lstrip() if after else pieces[i + 1]
        return "".join(piece if i % 2 else self._prepare_run(piece, i == 0) for i, piece in enumerate(pieces))

    def _prepare_run(self, run: str, first: bool) -> str:
        if self._trim:
            start, end = 0, len(run)
            while start < end and self._is_blank(run[start]):
                start += 1
            while end > start and self._is_blank(run[end - 1]):
                end -= 1
            run = run[start:end]
        if run and self._dummy_prefix and not (self._prefix_once and (not first or run[0] in " " + SPACE)):
            run = " " + run
        return run.replace(" ", SPACE) if self._escape else run

    def _is_blank(self, char: str) -> bool:
        if char.isascii() and char.isprintable():
            return char == " "
        with library(_CANNOT):
            return not self.backend.normalizer.normalize_str(char).strip(" " + SPACE)

    @cached_property
    def digest(self) -> str:
        """A hash of the vocabulary: of every token's number and spelling."""
        pairs = sorted((number, text) for text, number in self.backend.get_vocab(True).items())
        return hashlib.sha256(repr(pairs).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Spelling to id of every token that text from outside must not name."""
        ends = {*self.eos_token_ids, self.bos_token_id}
        return {t.content: i for i, t in self._added.items() if t.special or i in ends}

    @cached_property
    def spellings(self) -> Spellings:
        """Tells text that spells one of ``control_tokens``."""
        return Spellings(self.control_tokens)

    @property
    def guard(self) -> ControlGuard:
        """The backend copy for text that is not trusted; made at the first use."""
        with self._lock:
            return self._guard

    @cached_property
    def _guard(self) -> ControlGuard:
        with library("the tokenizer cannot be copied without its control tokens"):
            return ControlGuard(self.backend, self.control_tokens)

    @cached_property
    def _guard_breaks(self) -> object:
        aliases = self.guard.aliases
        return alternatives([aliases.get(s, s) for s in self._prefix_after])

    @cached_property
    def _guard_blanks(self) -> dict[str, tuple[bool, bool]]:
        aliases = self.guard.aliases
        return {aliases.get(name, name): flags for name, flags in self._blanks.items()}

    # -- decoding ---------------------------------------------------------------------------------

    def decode(
        self, ids: Iterable[int], *, skip_special_tokens: bool = True, continuation: bool = False
    ) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        A SentencePiece vocabulary's dummy prefix (one space at the start) is dropped, unless the
        ids continue an earlier text: pass ``continuation=True`` for those. Ids past the vocabulary
        (padding rows of a model) have no text. Raises RequestError for what is no id at all.
        """
        data = b"".join(self.token_text_bytes(i, skip_special_tokens) for i in ids)
        if self.codec.drops_prefix and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_text_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """The bytes that one token adds to decoded text."""
        return b"" if skip_special_tokens and self.is_special(token_id) else self.token_bytes(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; empty past the vocabulary. Raises RequestError."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._token_bytes(token_id)
        return data

    def _token_bytes(self, token_id: int) -> bytes:
        piece = self.id_to_token(token_id)
        if piece is None:
            return b""
        literal = token_id in self._added and (self.codec.kind == "byte_level" or self.is_special(token_id))
        return piece.encode() if literal else self.codec.to_bytes(piece)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token; None past the vocabulary. Raises RequestError."""
        try:
            token_id = token_id.__index__()
        except AttributeError:
            raise RequestError(f"{token_id!r} is not a token id") from None
        if not 0 <= token_id < 1 << 32:
            raise RequestError(f"token id {token_id} is out of range", f"ids are 0 to {self.vocab_size - 1}")
        return self.backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary spelling, None if there is none."""
        return self.backend.token_to_id(token)

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control token: left out of decoded text by default."""
        token = self._added.get(token_id)
        return token is not None and token.special
