"""Readers of what tasks end with (documents, presentations, a base), and of texts to calibrate on."""

from __future__ import annotations

import io
import sqlite3
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from random import Random

from minicpm4.agents.mcp.tasks.state import BASE, wrong
from minicpm4.errors import UnsupportedError
from minicpm4.evals.calibration_texts import read_windows
from minicpm4.testing import byte_text
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import mutated_bytes
from tests.fuzz.reader import Reader

_WAYS = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
_SAYS = b'<w:p w:x="1"><w:r>Tea &amp; cake</w:r></w:p><w:p>Later</w:p>'
_NAMES = [
    *("word/document.xml", "ppt/slides/slide1.xml", "ppt/slides/slide10.xml", "ppt/slides/slide01.xml"),
    *("ppt/slides/slide999999999.xml", "ppt/slides/slide١.xml", "../x", "é", "xl/workbook.xml", "word/"),
]
_PIECES = [
    *(
        b"<",
        b">",
        b"&",
        b"&amp;",
        b"&#",
        b"&#x",
        b"&#65;",
        b"&#x110000;",
        b"&#xd800;",
        b"&nosuch;",
        b"</w:p>",
    ),
    *(b"\xff", b"\xc3", b"\0", b"<![CDATA[", b"<!--", b"9" * 5000, b"&#" + b"9" * 5000 + b";", b"&" * 900),
    *(b"<" * 60_000, b"&#" * 9000, b"<a" * 9000, "\ud800".encode("utf-8", "surrogatepass")),
]


def _said(rng: Random) -> bytes:
    said = _SAYS
    for _ in range(rng.choice([0, 1, 1, 3])):
        at = rng.randrange(len(said) + 1)
        said = said[:at] + rng.choice(_PIECES) + said[at + rng.choice([0, 0, 1, 9]) :]
    return said


def _office(rng: Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        names = ["word/document.xml"] if rng.random() < 0.4 else rng.choices(_NAMES, k=rng.choice([1, 2, 4]))
        for name in dict.fromkeys(names):
            archive.writestr(zipfile.ZipInfo(name), _said(rng), rng.choice(_WAYS))
    content = made.getvalue()
    return mutated_bytes(rng, content, len(content)) if rng.random() < 0.5 else content


@cache
def _base() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / BASE
        base = sqlite3.connect(file)
        base.executescript(
            "PRAGMA page_size = 512; CREATE TABLE t (n, s TEXT); INSERT INTO t VALUES (1, 'é')"
        )
        base.commit()
        base.close()
        return file.read_bytes()


def _draw_ends(rng: Random) -> bytes:
    base = mutated_bytes(rng, _base(), len(_base())) if rng.random() < 0.5 else _base()
    return packed({"n.docx": _office(rng), BASE: base})


def _read_ends(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    found = wrong(folder, [["office has", "n.docx", "Tea & cake", "Later"]], "", "")
    for end in (["office lacks", "n.docx", "No"], ["slides", "n.docx", 0], ["file has", "n.docx", "No"]):
        found += wrong(folder, [end], "", "")
    base = wrong(folder, [["rows", "SELECT n, s FROM t", [[1, "é"]]]], "", "")
    found = [one for one in found if not one.startswith("file has")] + base
    if found:
        raise UnsupportedError(max(found, key=len))


def _draw_texts(rng: Random) -> bytes:
    """Files of text, and as the first line how many windows of how many tokens."""
    texts = {}
    for i in range(rng.choice([1, 1, 2, 3])):
        text = rng.choice(["abcdef", "é\u2028x\r\n" * 9, "", "two words " * 300, "\ufeffabc", "\0" * 20])
        content = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]))
        texts[f"{i}.txt"] = mutated_bytes(rng, content) if rng.random() < 0.5 else content
    count = rng.choice([1, 1, 2, 16, 5000])
    length = rng.choice([1, 2, 3, 4, 9, 64, 1 << 40])
    return packed({"asked": f"{count} {length} {rng.choice([0, 0, 2, 70])}".encode(), **texts})


def _read_texts(case: bytes, folder: Path) -> None:
    unpacked(case, folder)
    count, length, begin = map(int, (folder / "asked").read_text().split())
    files = sorted(folder.glob("*.txt"))
    found = read_windows(byte_text().tokenizer, files, count, length, range(begin))
    assert 0 < len(found) <= count and all(len(one) == length for one in found)


READERS = [
    Reader(name="ends", draw=_draw_ends, read=_read_ends),
    Reader(name="windows", draw=_draw_texts, read=_read_texts),
]
