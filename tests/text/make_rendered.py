"""Write data/rendered.json: what transformers renders of ``chats.CHATS`` in every template.

    python -m tests.text.make_rendered        where transformers 5.23 is installed; not in this environment

Of arguments and parts each template is given what its source takes. Content that is missing is given as
transformers' apply_chat_template passes it on (an absent key); where the template fails on that, as null,
then as an empty text.
"""

from __future__ import annotations

import json
from typing import Any

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tests.text.chats import (
    CHATS,
    READS_PARTS,
    RENDERED,
    TEXT_ARGUMENTS,
    TOKENS,
    sources,
    with_joined_parts,
    with_missing,
    with_text_arguments,
)


def main() -> None:
    """Render all and say how many."""
    backend = Tokenizer(models.BPE())
    backend.add_special_tokens(list(TOKENS.values()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    found: dict[str, dict[str, Any]] = {}
    for name, source in sources().items():
        tokenizer.chat_template = source
        found[name] = {chat: _rendered(tokenizer, name, *CHATS[chat]) for chat in CHATS}
    texts = [one for every in found.values() for one in every.values()]
    RENDERED.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{len(found)} templates, {sum('text' in t for t in texts)} of {len(texts)} chats rendered")


def _rendered(tokenizer: Any, name: str, messages: list[Any], options: dict[str, Any]) -> dict[str, str]:
    if name in TEXT_ARGUMENTS:
        messages = with_text_arguments(messages)
    if name not in READS_PARTS:
        messages = with_joined_parts(messages)
    options = {"add_generation_prompt": True, **options}
    error: Exception | None = None
    texts: dict[str, str] = {}
    for kind in ("absent", "null", "empty"):
        try:
            if kind == "null":  # apply_chat_template itself never passes null on
                chat = [{k: v for k, v in m.items() if v is not None} for m in messages]
                values = {**tokenizer.special_tokens_map, **options}
                texts[kind] = render_jinja_template(
                    [with_missing(chat, kind)], chat_template=tokenizer.chat_template, **values
                )[0][0]
            else:
                chat = with_missing(messages, kind)
                texts[kind] = tokenizer.apply_chat_template(chat, tokenize=False, **options)
        except Exception as failure:
            error = failure
    if texts:
        return {"text": next(iter(texts.values()))}
    return {"error": str(error) if isinstance(error, jinja2.TemplateError) else ""}


if __name__ == "__main__":
    main()
