"""Make tests/fixtures/transformers/answers-VERSION.json: chats answered by transformers, greedily.

    python benchmarks/reference/transformers_answers.py     # environments as for transformers_configs.py

name -> "texts": the JSON files of the folder (model and tokenizer, saved by save_pretrained), "weights": of
each weight file names, shapes and types, "chats": [messages, ids of the prompt, ids of the answer, its text]
each. Weights are those of ``transformers_folders.draw_chatty``. Every other folder names </s> alone as its
end: there transformers is told that the template's <|im_end|> is one as well. Answers in which two tokens
nearly tie are left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers_configs import (
    CLASSES,
    FOLDERS,
    MULTIPLIERS,
    OUT,
    VERSION,
    as_minicpm,
    multiplied,
    saved,
    write,
)

from tests.fixtures.byte_tokenizer import BOS, CHAT_TEMPLATE, EOS, IM_END, SPECIALS, write_tokenizer
from tests.fixtures.transformers_folders import CHATTY, draw_chatty

ENDS = [EOS, IM_END, 5, 77, 290]
NEW = 24
WORDS = ("Hi", "Why is 1 < 2?", "say <|im_start|", "日本 é\n", "a b c", "", "List:\n- x", "\t?")


def main() -> None:
    """Save, answer, write."""
    found = {}
    for number, (name, (kind, changes, shard)) in enumerate(FOLDERS.items()):
        if name.endswith("window"):
            continue
        found[name] = _answered(name, kind, dict(changes), shard, ENDS if number % 2 else [EOS])
    write(OUT / f"answers-{VERSION}.json", found)
    chats = [chat for one in found.values() for chat in one["chats"]]
    print(
        len(found),
        "folders,",
        len(chats),
        "chats,",
        sum(len(c[2]) < NEW for c in chats),
        "that end before the limit",
    )


def _answered(name: str, kind: str, changes: dict[str, Any], shard: str, ends: list[int]) -> dict[str, Any]:
    if VERSION.startswith("5") and "rope_theta" in changes:
        changes["rope_parameters"] = {"rope_type": "default", "rope_theta": changes.pop("rope_theta")}
    minicpm = name.startswith("minicpm")
    tied = minicpm and name.endswith("tied")
    special = {"bos_token_id": BOS, "eos_token_id": EOS}
    config = CLASSES[kind][0](**(CHATTY | special | changes), attn_implementation="eager")
    model = CLASSES[kind][1](config).float().eval()
    state = {key: draw_chatty(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings or tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=shard)
        write_tokenizer(Path(made), CHATTY["vocab_size"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(Path(made) / "tokenizer.json"), bos_token=SPECIALS[0], eos_token=SPECIALS[1]
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        own = as_minicpm(config, tied) | CHATTY | special if minicpm else None
        one = saved(Path(folder), own, tied)
        one["texts"].pop("tokenizer.json")  # write_tokenizer's
        template = Path(folder) / "chat_template.jinja"
        one["texts"]["tokenizer_config.json"]["chat_template"] = (
            template.read_text() if template.is_file() else CHAT_TEMPLATE
        )
    if minicpm:
        scaled = {key: torch.from_numpy(multiplied(key, value)) for key, value in state.items()}
        model.load_state_dict(scaled)
    one["chats"] = []
    for number, words in enumerate(WORDS):
        messages = [{"role": "user", "content": words}]
        if number % 3 == 2:
            messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": words[::-1]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        out = model.generate(
            torch.tensor([ids]),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=[*dict.fromkeys([*ends, IM_END])],
            pad_token_id=EOS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answer = out.sequences[0, len(ids) :].tolist()
        best = torch.stack(out.logits)[:, 0].topk(2).values
        if (best[:, 0] - best[:, 1]).min() < 1e-2:
            continue
        spoken = answer[:-1] if answer[-1] in {*ends, IM_END} else answer
        one["chats"].append([messages, ids, answer, tokenizer.decode(spoken, skip_special_tokens=True)])
    return one


if __name__ == "__main__":
    assert MULTIPLIERS["dim_model_base"] * 2 == CHATTY["hidden_size"]  # as ``multiplied`` takes it
    main()
