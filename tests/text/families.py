"""Tokenizers of five families, small, made and saved by transformers (5.23, or 4.57 as it was before).

What the classes of either version put into a folder is what people's folders hold. Needs transformers:
``make_vectors.py`` keeps folders with their ids for tests that run without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 2024, don't they'll see 3.14159 and 1,000,000?",
    "def f(x):\n    return x ** 2  # ok\n\n\nclass A:\n\tpass\n",
    "naïve café déjà vu, coöperate; Ünïcödé ﬁ ½",
    "今天天气很好，我们去公园吧。日本語と한국어",
    "Привет, мир! Καλημέρα κόσμε",
    "user assistant system user\nassistant\nsystem\n",
] * 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
IM = ["<|im_start|>", "<|im_end|>"]


def sentencepiece_like() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE as SentencePiece trains it: three control tokens, bytes, pieces."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    raw.train_from_iterator(CORPUS, BpeTrainer(vocab_size=700, show_progress=False))
    state = _model(raw)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *state["vocab"]]
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(pair) for pair in state["merges"]]


def byte_level_like(pattern: str, specials: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = words(pattern)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    )
    state = _model(raw)
    return {piece: i for i, piece in enumerate([*state["vocab"], *specials])}, state["merges"]


def words(*patterns: str) -> Any:
    steps = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _model(raw: Tokenizer) -> dict[str, Any]:
    import json

    state = json.loads(raw.to_str())["model"]
    ordered = sorted(state["vocab"], key=state["vocab"].get)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["merges"]]
    return {"vocab": ordered, "merges": merges}


def _spm_object(legacy: bool) -> Tokenizer:
    """What transformers 4 makes of a tokenizer.model."""
    vocab, merges = sentencepiece_like()
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return made


def _five() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def _llama_class(legacy: bool, **options: Any) -> Any:
    from transformers import LlamaTokenizerFast

    if not _five():
        return LlamaTokenizerFast(tokenizer_object=_spm_object(legacy), legacy=legacy, **options)
    vocab, merges = sentencepiece_like()
    return LlamaTokenizerFast(vocab=vocab, merges=merges, legacy=legacy, **options)


def llama(**options: Any) -> Any:
    """Llama 2: in transformers 4, a space is before the text that follows every control token."""
    return _llama_class(not _five(), add_bos_token=True, chat_template=INST, **options)


def mistral(**options: Any) -> Any:
    """Mistral: that space at the start of a text only, and control tokens of its own."""
    made = _llama_class(False, add_bos_token=True, chat_template=INST, **options)
    made.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    return made


def minicpm(**options: Any) -> Any:
    """MiniCPM: Llama's with ChatML's tokens behind it."""
    made = _llama_class(
        not _five(), add_bos_token=True, eos_token="<|im_end|>", chat_template=CHATML, **options
    )
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in IM])
    made.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    return made


def llama3(**options: Any) -> Any:
    """Llama 3: bytes, a post-processor for BOS."""
    from transformers import PreTrainedTokenizerFast

    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    vocab, merges = byte_level_like(LLAMA3, special)
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    made.pre_tokenizer, made.decoder = words(LLAMA3), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    bos = (special[0], vocab[special[0]])
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos[0]}:0 $A:0", pair=f"{bos[0]}:0 $A:0 {bos[0]}:1 $B:1", special_tokens=[bos]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[-1], chat_template=HEADERS, **options
    )


def qwen2(**options: Any) -> Any:
    """Qwen2: bytes, composed text, no BOS."""
    from transformers import Qwen2TokenizerFast

    special = ["<|endoftext|>", *IM]
    vocab, merges = byte_level_like(QWEN2, special)
    options = {"eos_token": "<|im_end|>", "additional_special_tokens": IM, "chat_template": CHATML} | options
    if _five():
        return Qwen2TokenizerFast(vocab=vocab, merges=merges, **options)
    made = Tokenizer(models.BPE(vocab, merges))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), words(QWEN2)
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return Qwen2TokenizerFast(tokenizer_object=made, **options)


def qwen3(**options: Any) -> Any:
    """Qwen3: Qwen2's with tokens that are not special."""
    made = qwen2(**options)
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return made


FAMILIES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (llama, mistral, minicpm, llama3, qwen2, qwen3)
}
TYPES = {"llama3": "llama", "minicpm": "minicpm"}
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello, it's 2024!"}],
    [
        {"role": "user", "content": "  café ?\n\n日本"},
        {"role": "assistant", "content": "Привет\n"},
        {"role": "user", "content": "ok"},
    ],
]


def texts(seed: int, count: int, names: list[str]) -> list[str]:
    """Random texts: letters of many scripts, combining marks, blanks of every kind, ``names`` of tokens."""
    rng = random.Random(seed)
    ranges = [(0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x33F), (0x370, 0x4FF), (0x1E00, 0x1EFF), (0x2000, 0x206F)]
    ranges += [(0x3000, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xFF00, 0xFF5E), (0x1F600, 0x1F64F)]
    pieces = [
        "the",
        " quick",
        "It's",
        "'ſ",
        "1234",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "e\u0301",
        "A\u030a",
        "'LL",
        "¼",
        "▁",
    ]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(pieces)
        if kind < 0.5 and names:
            return rng.choice(names)
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))

    made = ["".join(piece() for _ in range(rng.randint(0, 12))) for _ in range(count)]
    return ["", " ", "cafe\u0301", "don't  stop\n\n 12345", *made][:count]


def reference_chat(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return list(found if isinstance(found, list) else found["input_ids"])


def save(name: str, folder: Path, **options: Any) -> Any:
    """Family ``name`` in ``folder`` as transformers saves it, with a config.json that names its type."""
    import json

    made = FAMILIES[name](**options)
    made.save_pretrained(folder)
    config = {"model_type": TYPES.get(name, name), "vocab_size": len(made)}
    if config["model_type"] == "minicpm":  # its own library needs code of the checkpoint's: as Llama's
        config["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))
    return made
