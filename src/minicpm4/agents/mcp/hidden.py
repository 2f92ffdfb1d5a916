"""Characters that a person does not see and a model does, and names that only look alike."""

from __future__ import annotations

import unicodedata

__all__ = ["escaped", "has_hidden", "looks", "visible"]

# Marks without ink that Unicode counts as letters or as parts of letters.
_BLANK = frozenset(
    [
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000)),
    ]
)
_HIDDEN_KINDS = {"Cf", "Cc", "Co", "Cs", "Zl", "Zp"}  # formats (joiners, directions, tags), controls, …
_KEPT = {"\n", "\t"}
# Letters of other alphabets, and digits, beside the Latin letter that each looks like.
_PAIRS = (
    "аa еe оo рp сc уy хx іi јj ѕs ԁd һh ԛq ԝw вb кk мm нh тt ѵv ӏl ɡg ɑa ıi ɩi "
    "αa βb γy εe ηn ικ ιi κk νv οo ρp τt υu χx ωw ϲc ϳj օo սu հh ցg ոn 0o 1l 3e 5s $s !l |l"
)
_LOOKS = {pair[0]: pair[1] for pair in _PAIRS.split() if len(pair) == 2}
_APART = str.maketrans("", "", "_-.:/ ")


def _hidden(char: str) -> bool:
    if char in _KEPT or " " <= char <= "~":
        return False
    return unicodedata.category(char) in _HIDDEN_KINDS or ord(char) in _BLANK or not char.isprintable()


def has_hidden(text: str) -> bool:
    """Whether a person who reads ``text`` does not see all of it, or sees it in another order."""
    return any(map(_hidden, text.replace("\r\n", "\n")))


def visible(text: str) -> str:
    """``text`` without what nobody sees: what a model may read."""
    text = text.replace("\r\n", "\n")
    return "".join(char for char in text if not _hidden(char))


def escaped(text: str) -> str:
    """``text`` with what nobody sees written out, as ``\\u{200b}``: what a person is shown."""
    return "".join(f"\\u{{{ord(char):x}}}" if _hidden(char) else char for char in text)


def looks(name: str) -> str:
    """What a name looks like: names that give the same may be taken for one another."""
    plain = unicodedata.normalize("NFKD", visible(name)).casefold()
    plain = "".join(_LOOKS.get(c, c) for c in plain if not unicodedata.combining(c))
    return plain.replace("rn", "m").replace("vv", "w").replace("i", "l").translate(_APART)
