"""Byte-level BPE: how the kinds of them split text into words, and the tokenizer that does.

A GGUF file names its kind in ``tokenizer.ggml.pre``, a Hugging Face folder without tokenizer.json by a class.
The patterns are those of the checkpoints' own tokenizer.json; llama.cpp has simpler ones in place of some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minicpm4.config.strict import shown
from minicpm4.errors import TextError
from minicpm4.text.library import AGAIN, library

__all__ = ["WORDS", "Words", "byte_level_backend", "splitter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """A way to split: ``patterns``, one after the other, each on what those before it left.

    ``composed``: text is put into Unicode's NFC first. ``whole``: a word that the vocabulary has is one
    token, whatever merges say. ``bos``: a text begins with BOS where nothing says otherwise.
    """

    patterns: tuple[str, ...]
    composed: bool = False
    whole: bool = False
    bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (_CASED + r"\p{N}{1,3}" + _CASED_TAIL,)
_DIGITS = (r"\p{N}", _GPT2)

# Words that end where upper case begins: Mistral's Tekken, and o200k, which keeps English endings.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _camel(ending: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}"
    return words + "|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# Code points of the letters of deepseek-llm: those with case, in most scripts.
_LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 "
    "1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC "
    "1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 "
    "213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B "
    "A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F "
    "104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_CJK = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"


def _characters(ranges: str) -> str:
    return "".join("-".join(rf"\x{{{end}}}" for end in one.split("-")) for one in ranges.split())


_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_characters(_LETTERS)}]+",
    rf"\s?[!-/:-~{_characters('FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+",
    r"\s+$",
    _CJK,
    r"\p{N}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    rf"[{_characters('4E00-9FA5 3040-309F 30A0-30FF')}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_VIKING = (" ?[^(\\s|" + _characters("2E 2C 21 3F 2026 3002 FF0C 3001 964 6D4 60C") + ")]+", r"\p{N}")

_ONE_DIGIT = Words(patterns=_DIGITS)
_QWEN = Words(patterns=(_CASED + r"\p{N}" + _CASED_TAIL,), composed=True)
_LLAMA = Words(patterns=_LLAMA3, whole=True, bos=True)
_O200K = Words(patterns=(_camel(_ENDING, r"\p{N}{1,3}"),))

# tokenizer.ggml.pre -> how its words are split. Of llama.cpp's names those that models of our types have.
WORDS: dict[str, Words] = {
    "default": Words(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "mellum", "a.x-4.0", "trillion"), Words(patterns=(_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "minerva-7b", "mellum2"), _ONE_DIGIT),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "f2llmv2"), _QWEN),
    **dict.fromkeys(("megrez", "kormo"), Words(patterns=_QWEN.patterns)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA),
    "smaug-bpe": Words(patterns=_LLAMA3),
    "minicpm5": Words(patterns=(r"\p{N}{1,3}", _CASED + r"\p{N}+" + _CASED_TAIL), whole=True),
    "deepseek-llm": Words(patterns=_DEEPSEEK_LLM),
    "deepseek-coder": Words(patterns=_DEEPSEEK_CODER),
    "deepseek-v3": Words(patterns=_DEEPSEEK3),
    "tekken": Words(patterns=(_camel("", r"\p{N}"),), whole=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _O200K),
    "seed-coder": Words(patterns=(_CASED + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)),
    "viking": Words(patterns=_VIKING),
}


def splitter(words: Words, *, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    """What splits text into ``words``, spelled as byte-level vocabularies spell them."""
    steps: list[Any] = [pre_tokenizers.Split(Regex(one), "isolated") for one in words.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False))
    if add_prefix_space and words.patterns == (_GPT2,):  # before the text, not before each word of it
        return pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    return pre_tokenizers.Sequence(steps)


def byte_level_backend(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    kind: str,
    *,
    add_prefix_space: bool = False,
) -> Tokenizer:
    """The tokenizer of ``kind`` (of ``WORDS``) without added tokens. Raises TextError where merges and
    vocabulary do not fit together."""
    words = WORDS[kind]
    # The library would panic, which writes lines of its own to the terminal.
    missing = next((pair for pair in merges if pair[0] + pair[1] not in vocab), None)
    if missing is not None:
        raise TextError(f"merges and tokens do not fit together: {shown(missing)} makes no token", AGAIN)
    with library("merges and tokens do not fit together"):
        backend = Tokenizer(models.BPE(dict(vocab), list(merges), ignore_merges=words.whole))
    backend.pre_tokenizer = splitter(words, add_prefix_space=add_prefix_space)
    if words.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend
