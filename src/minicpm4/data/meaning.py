"""What a page says by where its characters stand, put in words: raised and lowered text, and formulas.

    10<sup>-6</sup>, H<sub>2</sub>O, V<sub>max</sub>      10⁻⁶, H₂O, V_max
    <math> with TeX beside it, images and scripts of TeX  $\\frac{1}{2}$, on lines of their own $$…$$
    <math> alone                                          (a + b)/2, √(x² + 1)

Footnote marks, ordinals (1st) and trade marks are raised without meaning: they stay as they are.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TypeAlias

__all__ = ["BLOCKS", "RENDERED", "MeaningParser"]

Attributes: TypeAlias = list[tuple[str, str | None]]
# ruff: noqa: SIM905  (words in a row are read faster than a column of strings)
BLOCKS = frozenset(
    "address article blockquote body dd div dl dt fieldset figure h1 h2 h3 h4 h5 h6 hr li main ol p pre "
    "section table tr ul".split()
)
RENDERED = frozenset("katex-html MathJax MathJax_Preview MathJax_Display MathJax_SVG".split())
"""Classes of what a script drew of a formula that is there in words, too."""
MAX_RAISED = 64  # characters: more is no index, but an end that is missing
MAX_DEPTH = 200
_RAISED = dict(zip("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ", strict=True))
_LOWERED = dict(zip("0123456789+-−=()aeoxhklmnpstijruv", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼᵣᵤᵥ", strict=True))
_ORDINAL = frozenset("st nd rd th er re e ère ème nd° o a os as".split())
_SIGNS = {"TM": "™", "SM": "℠", "(TM)": "™", "(R)": "®", "∘": "°"}
_NOTE = re.compile(r"[\[*†‡§¶#®©™℠°ºª′″‴]")
_PICTURE = frozenset("math tex latex mwe-math-fallback-image-inline mwe-math-fallback-image-display".split())
_STYLE = re.compile(r"\{\\(?:display|text)style\s*(.*)\}", re.DOTALL)
_CDATA = re.compile(r"^\s*%\s*(?:<!\[CDATA\[|\]\]>)\s*$", re.MULTILINE)
_INFIX = frozenset("= + - − ± ∓ × · ÷ < > ≤ ≥ ≠ ≈ ≡ ∼ ≃ ∝ → ← ↔ ⇒ ⇔ ∈ ∉ ⊂ ⊆ ∪ ∩ ∧ ∨ ↦ :=".split())
_UNSEEN = dict.fromkeys(map(ord, "\u2061\u2062\u2063\u2064\u200b"))
_BEFORE = "\ufdd0"  # between what stands behind a base and what before it
_PLACED = {*_RAISED.values(), *_LOWERED.values()}
_ATOM = re.compile(rf"√?\w[{''.join(_PLACED)}]*|.|[0-9.,]*|√?\([^()]*\)|\[[^\[\]]*\]", re.DOTALL)


class MeaningParser(HTMLParser):
    """Calls ``start``, ``end`` and ``words`` of its heirs: ``words`` with what is raised, lowered or a
    formula as text, ``start`` and ``end`` for all elements but those that say so."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._scripts: list[tuple[str, list[str]]] = []  # open <sup> and <sub>, and what is in them
        self._math: _Math | None = None
        self._tex: list[str] | None = None  # of a script of it
        self._display = False
        self._before = ""  # the character before
        self._formula = ""  # the last one, until other words come

    def start(self, tag: str, given: Attributes) -> None:
        raise NotImplementedError

    def end(self, tag: str) -> None:
        raise NotImplementedError

    def words(self, data: str) -> None:
        raise NotImplementedError

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        if tag in BLOCKS:
            self._give_up()
        if self._math is not None:
            self._math.start(tag, attrs)
        elif tag == "math":
            self._math = _Math(attrs)
        elif tag in ("sup", "sub"):
            self._scripts.append((tag, []))
        elif tag == "script" and (kind := dict(attrs).get("type") or "").startswith("math/tex"):
            self._tex, self._display = [], "display" in kind
        elif tag == "img" and not _PICTURE.isdisjoint((dict(attrs).get("class") or "").split()):
            self._say_formula(dict(attrs).get("alt") or "", display=False)
        else:
            self.start(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self._give_up()
        if self._math is not None:
            if tag == "math":
                self._end_math()
            else:
                self._math.end(tag)
        elif tag == "script" and self._tex is not None:
            tex, self._tex = "".join(self._tex), None
            self._say_formula(_CDATA.sub("", tex), self._display)
        elif tag in ("sup", "sub"):
            if self._scripts:
                name, parts = self._scripts.pop()
                self._say(_moved("".join(parts), name, self._last_character()))
        else:
            self.end(tag)

    def handle_data(self, data: str) -> None:
        if self._math is not None:
            self._math.data(data)
        elif self._tex is not None:
            self._tex.append(data)
        else:
            self._say(data)

    def close(self) -> None:
        super().close()
        self._give_up()

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # "<![" and what is no CDATA: as browsers do
            return self.parse_bogus_comment(i, report)

    def updatepos(self, i: int, j: int) -> int:
        return j  # nobody asks where in the page something stands; counting lines takes a tenth of the time

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._scripts:
            self._scripts[-1][1].append(text)
            return
        self._before = text[-1]
        if self._formula and text.strip():
            self._formula = ""
        self.words(text)

    def _last_character(self) -> str:
        inside = next((part[-1] for part in reversed(self._scripts[-1][1])), "") if self._scripts else ""
        return inside or self._before

    def _say_formula(self, tex: str, display: bool) -> None:
        tex = " ".join(tex.split())
        while wrapped := _STYLE.fullmatch(tex):
            tex = wrapped[1].strip()
        if tex and tex != self._formula:  # a picture may follow what it shows
            mark = "$$" if display else "$"
            self._say(f"{mark}{tex}{mark}")
            self._formula = tex

    def _end_math(self) -> None:
        math, self._math = self._math, None
        assert math is not None
        if math.tex:
            self._say_formula(math.tex, math.display)
        else:
            self._say(math.text())

    def _give_up(self) -> None:
        """Whatever has not ended where a block begins or ends never will."""
        if self._math is not None:
            self._end_math()
        if self._scripts:
            text = "".join(part for _, parts in self._scripts for part in parts)
            self._scripts.clear()
            self._say(text)


def _moved(text: str, tag: str, before: str) -> str:
    """``text`` raised or lowered behind the character ``before``."""
    inner = " ".join(text.split())
    raised = tag == "sup"
    if not inner or len(inner) > MAX_RAISED:
        return text
    if raised and inner in _SIGNS:
        return _SIGNS[inner]
    ordinal = inner.lower() in _ORDINAL if before.isdigit() else inner == "th" and before.isalpha()
    if raised and (_NOTE.match(inner) or ordinal):
        return text
    table = _RAISED if raised else _LOWERED
    if all(char in table for char in inner) and sum(map(str.isalpha, inner)) < 2:
        return "".join(table[char] for char in inner)
    if not before.strip():
        return text  # behind nothing
    mark = "^" if raised else "_"
    return mark + (inner if inner.isalnum() and _PLACED.isdisjoint(inner) else f"({inner})")


class _Math:
    """An element <math>: its TeX, where that is given, and else its parts in a line."""

    def __init__(self, given: Attributes) -> None:
        attributes = dict(given)
        self.display = attributes.get("display") == "block"
        self.tex = (attributes.get("alttext") or "").strip()
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = [("math", attributes, [])]

    def start(self, tag: str, given: Attributes) -> None:
        if len(self._open) < MAX_DEPTH:
            self._open.append((tag, dict(given), []))
            if tag in ("mspace", "none", "mprescripts"):
                self.end(tag)

    def end(self, tag: str) -> None:
        if tag not in {name for name, _, _ in self._open[1:]}:
            return
        name = ""
        while name != tag:
            name, given, parts = self._open.pop()
            if name in ("annotation", "annotation-xml"):
                if "tex" in (given.get("encoding") or "").lower():
                    self.tex = "".join(parts).strip() or self.tex
            else:
                self._open[-1][2].append(_line(name, given, parts))

    def data(self, data: str) -> None:
        name, _, parts = self._open[-1]
        if name == "annotation":
            parts.append(data)
        elif text := " ".join(data.translate(_UNSEEN).split()):
            parts.append(text)

    def text(self) -> str:
        while len(self._open) > 1:
            self.end(self._open[-1][0])
        return _joined(self._open[0][2]).replace(_BEFORE, "")


def _line(tag: str, given: dict[str, str | None], parts: list[str]) -> str:
    """An element of MathML with these parts in a line."""
    one, two, three = (*parts, "", "", "")[:3]
    if tag == "mo":
        text = "".join(parts)
        return f" {text} " if text in _INFIX else text
    if tag in ("mi", "mn", "mtext", "ms"):
        return "".join(parts)
    if tag == "mspace":
        return " "
    if tag == "mphantom":
        return ""
    if tag in ("msup", "mover"):
        return _whole(one) + _moved(two.strip(), "sup", "x")
    if tag in ("msub", "munder"):
        return _whole(one) + _moved(two.strip(), "sub", "x")
    if tag in ("msubsup", "munderover"):
        return _whole(one) + _moved(two.strip(), "sub", "x") + _moved(three.strip(), "sup", "x")
    if tag == "mfrac":
        return f"{_whole(one)}/{_whole(two)}"
    if tag == "msqrt":
        return "√" + _whole(_joined(parts))
    if tag == "mroot":
        return _moved(two.strip(), "sup", "") + "√" + _whole(one)
    if tag == "mprescripts":
        return _BEFORE
    if tag == "mmultiscripts":
        at = parts.index(_BEFORE) if _BEFORE in parts else len(parts)
        behind, before = (_pairs(some) for some in (parts[1:at], parts[at + 1 :]))
        return before + (_whole(one) if behind else one) + behind
    if tag == "mfenced":
        comma = (given.get("separators") or ",")[:1]
        return (given.get("open") or "(") + f"{comma} ".join(parts) + (given.get("close") or ")")
    if tag in ("mtr", "mlabeledtr"):
        return ", ".join(part.strip() for part in parts)
    if tag == "mtable":
        return f"[{'; '.join(parts)}]"
    return _joined(parts)


def _pairs(parts: list[str]) -> str:
    """Lowered and raised in turn."""
    return "".join(_moved(part.strip(), "sup" if i % 2 else "sub", "x") for i, part in enumerate(parts))


def _whole(text: str) -> str:
    """``text`` as one operand."""
    text = text.strip()
    return text if _ATOM.fullmatch(text) else f"({text})"


def _joined(parts: list[str]) -> str:
    """``parts`` in a row: names of several letters apart from what is beside them, a sign at the front close
    to what it belongs to."""
    text = ""
    for part in parts:
        apart = text[-1:].isalnum() and part[:1].isalpha() and (len(part) > 1 and part.isalpha())
        apart = apart or bool(re.search(r"[^\W\d]{2}\Z", text) and part[:1].isalnum())
        text += f" {part}" if apart else part
    return re.sub(r" {2,}", " ", re.sub(r"(^|[(\[{,])\s*([+\-−±])\s+", r"\1\2", text)).strip()
