"""Readers of what training data comes in: packages of texts, parquet, pages that ask and answer."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from minicpm4.data.packages import _unpack_deb, _unpack_wheel
from minicpm4.data.questions import page_conversations
from minicpm4.data.sources import conversations, files_of, texts, untold
from tests.fuzz.mutate import mutated_bytes
from tests.fuzz.reader import Reader

_PAGE = "<h1>Subject</h1><p>" + "Something to read. " * 12 + "</p>"
_NAMES = [
    "demo/a.txt",
    "demo/é.html",
    "../../out.txt",
    "/abs.md",
    "demo",
    "demo/",
    "a" * 300,
    "con:",
    "\n.txt",
]
_WAYS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def _wheel(rng: Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in dict.fromkeys(["a.html", *rng.choices(_NAMES, k=rng.randrange(3))]):
            archive.writestr(zipfile.ZipInfo(name), _PAGE, rng.choice(_WAYS))
    return made.getvalue()


def _tar(files: dict[str, bytes], odd: tuple[str, bytes, str] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(content)
            archive.addfile(one, io.BytesIO(content))
        if odd is not None:
            one = tarfile.TarInfo(odd[0])
            one.type, one.linkname = odd[1], odd[2]
            archive.addfile(one)
    return made.getvalue()[: -8 * 1024]  # most of what fills it up


_ODD_FILES = [
    ("./usr/link", tarfile.SYMTYPE, "/etc"),
    ("./usr/link/x.txt", tarfile.REGTYPE, ""),
    ("./usr/hard.txt", tarfile.LNKTYPE, "./usr/a.txt"),
    ("./usr/pipe.txt", tarfile.FIFOTYPE, ""),
    ("../../out.txt", tarfile.REGTYPE, ""),
]


def _deb(rng: Random) -> bytes:
    odd = rng.choice([None, *_ODD_FILES])
    parts = {"debian-binary": b"2.0\n", "control.tar": _tar({"./control": b"Package: x\nVersion: 1\n"})}
    data = _tar({"./usr/a.txt": _PAGE.encode()}, odd)
    packed = rng.random() < 0.3
    parts["data.tar.gz" if packed else "data.tar"] = gzip.compress(data, mtime=0) if packed else data
    made = b"!<arch>\n"
    for name, content in parts.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        made += content + b"\n" * (len(content) % 2)
    return made


def _draw_archive(rng: Random) -> bytes:
    if shutil.which("dpkg-deb") is not None and rng.random() < 0.05:  # which takes two programs
        content, kind = _deb(rng), b"deb"
    else:
        content, kind = _wheel(rng), b"whl"
    return kind + b"\n" + (mutated_bytes(rng, content, len(content)) if rng.random() < 0.8 else content)


def _read_archive(case: bytes, folder: Path) -> None:
    kind, _, content = case.partition(b"\n")
    file, target = folder / f"a.{kind.decode()}", folder / "files" / "inside"
    file.write_bytes(content)
    target.mkdir(parents=True)
    (_unpack_deb if kind == b"deb" else _unpack_wheel)(file, target)
    outside = [one.name for one in (folder, target.parent) for one in one.iterdir()]
    assert sorted(outside) == sorted([file.name, "files", "inside"]), f"{outside} outside the folder"
    list(texts("package", files_of("html", [str(target)])))


# What tables of strangers hold: of each column two values.
_TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_FAR = [1 << 62, None]


@cache
def _columns() -> dict[str, Any]:
    import pyarrow as pa

    return {
        "text": ["one that is long enough", "two"],
        "turns": [_TURNS, _TURNS],
        "json": ['[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "[]"],
        "bytes": [b"one", b"\xff"],
        "null": [None, None],
        "floats": [0.5, float("nan")],
        "lists": [["a"], []],
        "maps": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
        "codes": pa.array(["a", "b"]).dictionary_encode(),
        "decimals": pa.array([1, 2], pa.decimal128(9, 2)),
        "times": pa.array(_FAR, pa.timestamp("us")),
        "zoned": pa.array([1, 2], pa.timestamp("us", "Nowhere/Is")),
        "lengths": pa.array(_FAR, pa.duration("ms")),
        "days": pa.array([1 << 30, 1], pa.date32()),
    }


_READ = ("text", "messages", "tools", "system", "documents", "chat_template_kwargs", "weight", "other")


@cache
def _parquet(names: tuple[tuple[str, str], ...], packed: bool) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    columns = [pa.array(_columns()[kind]) for _, kind in names]
    table = pa.Table.from_arrays(columns, names=[name for name, _ in names])
    made = io.BytesIO()
    write_table(table, made, compression="snappy" if packed else "none", store_schema=packed)
    return made.getvalue()


def _draw_parquet(rng: Random) -> bytes:
    kinds = list(_columns())
    if rng.random() < 0.5:
        names = [("text", rng.choice(["text", "text", *kinds])), (rng.choice(_READ), rng.choice(kinds))]
    else:
        names = [("messages", rng.choice(["turns", "turns", "json", *kinds]))]
        names += [(rng.choice(_READ), rng.choice(kinds)) for _ in range(rng.randrange(3))]
    content = _parquet(tuple(names), rng.random() < 0.5)
    content = mutated_bytes(rng, content, len(content)) if rng.random() < 0.8 else content
    return names[0][0].encode() + b"\n" + content


def _read_parquet(case: bytes, folder: Path) -> None:
    column, _, content = case.partition(b"\n")
    file = folder / "a.parquet"
    file.write_bytes(content)
    # As `data pack --strict` reads, and as it does without.
    skip = untold if len(content) % 2 else lambda reason, where: None
    if column == b"text":
        list(texts("parquet", [file], skip=skip))
    else:
        list(conversations([file], skip=skip))


# fmt: off
_PIECES = [
    "<h1>", "</h1>", "<h2>1.2 ", "</h2>", "<dt>", "</dt>", "<p>", "</p>", "<dd>", "<script>", "</script>",
    "<nav>", "</nav>", "<pre>", "<table>", "</table>", "<math>", "</math>", "<span class='katex'>", "</span>",
    "<br>", "<img alt='x'>", "<!--", "-->", "<![CDATA[", "]]>", "<?x ?>", "<!doctype", "&amp;",
    "&#1234567890;", "&#xd800;",
    "&", "name(a, b)", "Subject", "Is it so?", "Something to read, which is long enough. " * 2,
    "\0", "é", "\u2028", "<", ">", "<div " + "a" * 400, "<meta charset=utf-16>", "<meta charset=gbk>", "\n",
]
# fmt: on


def _draw_page(rng: Random) -> bytes:
    text = "".join(rng.choices(_PIECES, k=rng.randint(1, 30)))
    if rng.random() < 0.5:
        text = _PAGE + text + "<h2>Another subject</h2><p>" + "What there is to say of it. " * 3 + "</p>"
    content = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16"]), "replace")
    return mutated_bytes(rng, content, len(content)) if rng.random() < 0.3 else content


def _read_page(case: bytes, folder: Path) -> None:
    file = folder / "a.html"
    file.write_bytes(case)
    for one in page_conversations(file, lambda reason, where: None):
        assert all(message["content"].strip() for message in one.messages), one.messages
    list(texts("html", [file]))


READERS = [
    Reader(name="archives", draw=_draw_archive, read=_read_archive),
    Reader(name="questions", draw=_draw_page, read=_read_page),
]
if find_spec("pyarrow") is not None:
    READERS.append(Reader(name="parquet", draw=_draw_parquet, read=_read_parquet))
