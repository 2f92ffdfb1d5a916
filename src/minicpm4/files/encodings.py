"""Bytes to text, as a browser reads them (WHATWG, Encoding and HTML standards): a byte-order mark says the
encoding; else, of pages, their declaration; else it is UTF-8. What does not decode is refused, never replaced.

The labels below are the standard's. Python's codecs decode; where the standard reads bytes that they do not
know, or reads them otherwise, handlers and tables here say so.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["UndecodableError", "decode_page", "decode_text", "line_ends", "lines_of"]

DECLARED = 1024  # bytes of a page in which its declaration is looked for
LATE = 1 << 16  # and those in which a page that is no UTF-8 may still declare another encoding

# ruff: noqa: E501
_LABELS = """
utf-8: unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 unicodefffe utf-16be csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le
cp866: 866 cp866 csibm866 ibm866
iso8859-2: csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2
iso8859-3: csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3
iso8859-4: csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4
iso8859-5: csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988
iso8859-6: arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987
iso8859-7: csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek
iso8859-8: csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical
iso8859-10: csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6
iso8859-13: iso-8859-13 iso8859-13 iso885913
iso8859-14: iso-8859-14 iso8859-14 iso885914
iso8859-15: csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9
iso8859-16: iso-8859-16
koi8-r: cskoi8r koi koi8 koi8-r koi8_r
koi8-u: koi8-ru koi8-u
mac-roman: csmacintosh mac macintosh x-mac-roman
cp874: dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874
cp1250: cp1250 windows-1250 x-cp1250
cp1251: cp1251 windows-1251 x-cp1251
cp1252: ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 x-user-defined
cp1253: cp1253 windows-1253 x-cp1253
cp1254: cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254
cp1255: cp1255 windows-1255 x-cp1255
cp1256: cp1256 windows-1256 x-cp1256
cp1257: cp1257 windows-1257 x-cp1257
cp1258: cp1258 windows-1258 x-cp1258
mac-cyrillic: x-mac-cyrillic x-mac-ukrainian
gb18030: gb18030 chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk
big5hkscs: big5 big5-hkscs cn-big5 csbig5 x-x-big5
euc-jp: cseucpkdfmtjapanese euc-jp x-euc-jp
iso2022-jp-ext: csiso2022jp iso-2022-jp
cp932: csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis
cp949: cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949
replacement: csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement
"""
CODECS = {
    label: name
    for name, _, labels in (line.partition(":") for line in _LABELS.strip().splitlines())
    for label in labels.split()
}
"""Label -> Python's codec of the encoding that a page means by it; "replacement": one that no browser reads."""
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins as UTF-16 does
_WIDE_XML = {b"<\0?\0x\0": "utf-16-le", b"\0<\0?\0x": "utf-16-be"}
_JAPANESE = str.maketrans("\u301c\u2016\u2212\xa2\xa3\xac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
_OTHERWISE = {
    "koi8-u": str.maketrans("\u255d\u256c", "\u045e\u040e"),
    "euc-jp": _JAPANESE,
    "iso2022-jp-ext": _JAPANESE,
    "gb18030": str.maketrans(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19",
    ),
}
_TAG = re.compile(
    rb"""<!--(?:-?>|.*?-->)|<(?P<name>[a-z/!?][^\s/>]*)(?P<inside>(?:"[^"]*"|'[^']*'|[^>"'])*)>""",
    re.I | re.S,
)
_ATTRIBUTE = re.compile(rb"""([^\s/>=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+)))?""")
_CHARSET = re.compile(rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.I)
_XML = re.compile(rb"""\s*<\?xml\b[^>]*?\bencoding\s*=\s*["']([^"']*)["']""", re.S)


class UndecodableError(ValueError):
    """Bytes that are no text in the encoding that holds for them; the text says which, why and where."""


def decode_text(data: bytes) -> str:
    """Text of plain bytes: UTF-8, or UTF-16 where a byte-order mark says so; the mark is no part of it. Raises
    UndecodableError."""
    return _decode(data, _marked(data) or "utf-8")


def decode_page(data: bytes) -> str:
    """Text of an HTML page: by its byte-order mark, else by its declaration, else UTF-8. Raises
    UndecodableError."""
    name = _marked(data) or _WIDE_XML.get(data[:6]) or _declared(data[:DECLARED])
    if name is not None:
        return _decode(data, name)
    try:
        return _decode(data, "utf-8")
    except UndecodableError:
        late = _declared(data[:LATE])  # a browser that finds one starts again
        if late in (None, "utf-8"):
            raise
        return _decode(data, late)


def line_ends(text: str) -> str:
    """``text`` with "\\n" for each end of a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """The lines of ``text`` as a file opened in text mode has them, without their ends. ``str.splitlines``
    knows eight ends more, U+2028 among them, which JSON's strings may hold: it makes two lines of one."""
    return line_ends(text).split("\n")


def _marked(data: bytes) -> str | None:
    """What the byte-order mark of ``data`` says; None where there is none."""
    if data.startswith(_WIDE):
        raise UndecodableError("not UTF-8: its byte-order mark is UTF-32's")
    return next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)


def _declared(start: bytes) -> str | None:
    """The codec of the encoding that a page declares in its ``start``; None: none that is known."""
    for tag in _TAG.finditer(start):
        if (tag["name"] or b"").lower() != b"meta":
            continue
        found: dict[bytes, bytes] = {}
        for key, *values in _ATTRIBUTE.findall(tag["inside"]):
            found.setdefault(key.lower(), b"".join(values))
        label = found.get(b"charset")
        if label is None and found.get(b"http-equiv", b"").lower() == b"content-type":
            inside = _CHARSET.search(found.get(b"content", b""))
            label = b"".join(part or b"" for part in inside.groups()) if inside else None
        if label is not None and (name := _codec(label)):
            return name
    declared = _XML.match(start)
    return _codec(declared[1]) if declared else None


def _codec(label: bytes) -> str | None:
    return CODECS.get(label.decode("latin-1").strip("\t\n\f\r ").lower())


def _decode(data: bytes, name: str) -> str:
    if name == "replacement":
        raise UndecodableError("in an encoding that browsers refuse to read")
    try:
        text = data.decode(name, _HANDLER if name.startswith(("cp", "euc-jp", "gb")) else "strict")
    except UnicodeDecodeError as why:
        label = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}.get(name, name)
        raise UndecodableError(f"not {label}: {why.reason} at byte {why.start}") from why
    text = text.removeprefix("\ufeff")
    return text.translate(_OTHERWISE[name]) if name in _OTHERWISE else text


def _as_the_standard(error: UnicodeError) -> tuple[str, int]:
    """What the standard reads where Python's codecs read nothing."""
    assert isinstance(error, UnicodeDecodeError)
    data, at, name = error.object, error.start, error.encoding.replace("_", "-")
    byte = data[at]
    if name.startswith("charmap") and byte < 0xA0:
        return chr(byte), at + 1  # of code pages: a control character
    if name == "gb18030" and byte == 0x80:
        return "\u20ac", at + 1
    if name == "euc-jp" and at + 1 < len(data) and min(byte, data[at + 1]) > 0xA0 and data[at + 1] < 0xFF:
        # The rows of NEC and IBM, which Shift-JIS has: the same table in another order.
        row, cell = byte - 0xA1, data[at + 1] - 0xA1
        lead = row // 2 + (0x81 if row < 62 else 0xC1)
        trail = cell + (0x9F if row % 2 else 0x40 if cell < 63 else 0x41)
        return bytes((lead, trail)).decode("cp932"), at + 2
    raise error


_HANDLER = "minicpm4.whatwg"
codecs.register_error(_HANDLER, _as_the_standard)
