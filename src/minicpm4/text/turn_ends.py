"""What ends an answer: found from the chat template, by rendering, for all who ask.

A checkpoint names end tokens in three files, and often only those of its base model. What its template
writes after an answer is what a model tuned with it says there, so it is an end token too. Loss masks, the
engine's stop, what is exported and GGUF files' readers all take ``Tokenizer.eos_token_ids``, which
``with_turn_ends`` completes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from minicpm4.text.guard import alternatives
from minicpm4.text.probes import ASKED, CALLS, RESULTS, SAID, TOOL, USER, VALUE, rendered
from minicpm4.text.template import ChatTemplate
from minicpm4.text.tokenizer import END_SPELLINGS, Tokenizer

__all__ = ["turn_ends", "with_turn_ends"]


def with_turn_ends(tokenizer: Tokenizer, template: ChatTemplate | None) -> Tokenizer:
    """``tokenizer`` whose end tokens have those of ``template`` among them, after its own."""
    found = () if template is None else turn_ends(tokenizer, template)
    return tokenizer if set(found) <= set(tokenizer.eos_token_ids) else tokenizer.with_ends(found)


def turn_ends(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """Ids of the tokens that ``template`` writes after an answer, and after one that calls a tool; none where
    it writes none, or refuses such a chat.

    After an answer it is the first control token that follows its last word, whether another turn comes
    after it or not; else the first one between it and the opening of another turn, as some templates leave
    the last turn open; an added token that is not special counts where nothing but blanks is before it.
    After calls, which may have control tokens of their own, it is the last one before what follows them.
    """
    added = tokenizer.backend.get_added_tokens_decoder()
    special = {t.content: i for i, t in added.items() if t.special or i in tokenizer.eos_token_ids}
    plain = {t.content: i for i, t in added.items() if t.content not in special}
    answer = {"role": "assistant", "content": SAID}
    shared, whole = _after(template, SAID, [USER, answer], [USER, answer, USER])
    spoken = _tokens(shared, special) or _tokens(whole, special)
    spoken = spoken or _tokens(_between_turns(template), special)
    start = alternatives(plain)
    first = start.match(whole.lstrip()) if start is not None and not spoken else None
    found = [*spoken[:1], *([plain[first[0]]] if first is not None else [])]
    shared, whole = _after(template, VALUE, [USER, CALLS], [USER, CALLS, RESULTS], tools=[TOOL])
    found += (_tokens(shared, special) or _tokens(whole, special))[-1:]
    # What it writes only in chats that are not tried here, such as <|eom_id|>.
    sources = "\0".join(template.sources.values())
    found += [special[name] for name in END_SPELLINGS if name in special and name in sources]
    return tuple(dict.fromkeys(found))


def _tokens(text: str, ids: Mapping[str, int]) -> list[int]:
    pattern = alternatives(ids)
    return [] if pattern is None else [ids[m[0]] for m in pattern.finditer(text)]


def _after(
    template: ChatTemplate,
    word: str,
    ended: Sequence[Mapping[str, Any]],
    continued: Sequence[Mapping[str, Any]],
    **options: Any,
) -> tuple[str, str]:
    """What follows ``word`` alike where the chat ends and where it goes on, and all that follows at the end;
    empty where the template refuses or does not write the word."""
    alone = _rest(template, word, ended, **options)
    further = _rest(template, word, continued, **options) if alone else ""
    pairs = zip(alone, further, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), alone


def _between_turns(template: ChatTemplate) -> str:
    """What stands between an answer and the opening of the user's turn after it."""
    before, asked, _ = rendered(template, [USER]).partition(ASKED)
    between, again, _ = _rest(template, SAID, [USER, {"role": "assistant", "content": SAID}, USER]).partition(
        ASKED
    )
    if not (asked and again):
        return ""
    pairs = zip(reversed(between), reversed(before), strict=False)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return between[: len(between) - alike]


def _rest(template: ChatTemplate, word: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    text = rendered(template, messages, **options)
    return text.rpartition(word)[2] if word in text else ""
