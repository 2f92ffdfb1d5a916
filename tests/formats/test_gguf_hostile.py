"""GGUF files that are corrupt, cut short, or made to do harm: one clear error each."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.gguf_write import OutTensor, write_gguf
from tests.formats.gguf_files import key, raw_gguf, string, tensor, write_model

U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack
HUGE = 1 << 62
DATA = b"\0" * 4096


def array(inner: int, count: int, body: bytes = b"") -> bytes:
    return U32(inner) + U64(count) + body


CASES = {
    "magic": (b"GGML" + b"\0" * 100, r"starts with b'GGML', not with b'GGUF'"),
    "short magic": (b"GG", r"starts with b'GG'"),
    "only magic": (b"GGUF", r"a number needs 4 bytes at byte 4, but 0 are left"),
    "big endian": (b"GGUF\0\0\0\3" + b"\0" * 16, r"the file is big endian"),
    "version": (raw_gguf(version=1), r"GGUF version 1 is not supported"),
    "key count": (raw_gguf(num_keys=HUGE), rf"claims {HUGE} metadata keys, the limit is 65536"),
    "tensor count": (raw_gguf(num_tensors=HUGE), rf"claims {HUGE} tensors, the limit is 131072"),
    "more keys than bytes": (raw_gguf(num_keys=9), r"a table of 9 metadata keys needs 117 bytes"),
    "more tensors than bytes": (raw_gguf(num_tensors=9), r"a table of 9 tensors needs 288 bytes"),
    "key length": (
        raw_gguf([string("a", HUGE) + b"\0" * 9]),
        rf"a metadata key has {HUGE} bytes, the limit is 1024",
    ),
    "key past the end": (raw_gguf([string("a", 900) + b"\0" * 9]), r"a metadata key needs 900 bytes"),
    "key not UTF-8": (
        raw_gguf([key("", 4, U32(1)).replace(U64(0), U64(2) + b"\xff\xfe")]),
        r"a metadata key at byte 32 is not UTF-8",
    ),
    "key twice": (raw_gguf([key("a", 4, U32(1)), key("a", 4, U32(2))]), r"metadata key 'a' occurs twice"),
    "value type": (raw_gguf([key("a", 13, U32(1))]), r"metadata key 'a' has the unknown type 13"),
    "string length": (
        raw_gguf([key("a", 8, string("x", HUGE))]),
        r"the value of 'a' has \d+ bytes, the limit is",
    ),
    "string past the end": (
        raw_gguf([key("a", 8, string("x", 1 << 20))]),
        r"the value of 'a' needs 1048576 bytes",
    ),
    "array count": (
        raw_gguf([key("a", 9, array(4, HUGE))]),
        r"metadata arrays up to 'a' hold \d+ elements, the limit",
    ),
    "array past the end": (
        raw_gguf([key("a", 9, array(4, 1 << 20))]),
        r"the array 'a' of 1048576 elements needs",
    ),
    "string array past the end": (
        raw_gguf([key("a", 9, array(8, 1 << 20))]),
        r"the array 'a' of 1048576 elements needs",
    ),
    "array type": (
        raw_gguf([key("a", 9, array(99, 1, b"\0" * 8))]),
        r"metadata key 'a' has the unknown type 99",
    ),
    "string in array past the end": (
        raw_gguf([key("a", 9, array(8, 2, string("x") + string("y", HUGE)))]),
        rf"a string of 'a' has {HUGE} bytes at byte \d+, past the end",
    ),
    "strings cut off": (
        raw_gguf([key("a", 9, array(8, 2, U64(39) + b"x" * 39))]),  # ends there, unpadded
        r"the array 'a' of 2 strings runs past the end",
    ),
    "string in array not UTF-8": (
        raw_gguf([key("a", 9, array(8, 2, string("x") + string(b"\xc3")))]),
        r"string 1 of 'a' is not UTF-8",
    ),
    "deep array": (
        raw_gguf([key("a", 9, array(9, 1, array(9, 1, array(9, 1, array(4, 1, U32(1))))))]),
        r"metadata key 'a' nests arrays more than 2 deep",
    ),
    "alignment zero": (
        raw_gguf([key("general.alignment", 4, U32(0))]),
        r"general.alignment = 0 is not a power of two",
    ),
    "alignment odd": (
        raw_gguf([key("general.alignment", 4, U32(48))]),
        r"general.alignment = 48 is not a power",
    ),
    "alignment text": (
        raw_gguf([key("general.alignment", 8, string("32"))]),
        r"general.alignment = '32' is not",
    ),
    "no dimensions": (raw_gguf(tensors=[tensor("w", ())]), r"tensor 'w' has 0 dimensions, outside 1 to 4"),
    "many dimensions": (raw_gguf(tensors=[tensor("w", (1,) * 5)]), r"tensor 'w' has 5 dimensions"),
    "zero size": (
        raw_gguf(tensors=[tensor("w", (0, 4))], data=DATA),
        r"tensor 'w' has shape \(4, 0\), which type F32",
    ),
    "overflowing size": (
        raw_gguf(tensors=[tensor("w", (1 << 33, 1 << 33))]),
        r"tensor 'w' has shape .* which type F32",
    ),
    "wrapping size": (
        raw_gguf(tensors=[tensor("w", ((1 << 64) - 1, 2))]),
        r"tensor 'w' has shape .* which type F32",
    ),
    "part of a block": (
        raw_gguf(tensors=[tensor("w", (33,), 2)], data=DATA),
        r"type Q4_0 \(blocks of 32\) cannot have",
    ),
    "unknown type": (
        raw_gguf(tensors=[tensor("w", (32,), 77)]),
        r"tensor 'w' has type 77 \(unknown\).* use one of F32",
    ),
    "unsupported type": (raw_gguf(tensors=[tensor("w", (256,), 16)]), r"tensor 'w' has type 16 \(IQ2_XXS\)"),
    "odd offset": (
        raw_gguf(tensors=[tensor("w", (4,), 0, 4)], data=DATA),
        r"starts at offset 4, not a multiple of .* 32",
    ),
    "offset past the end": (
        raw_gguf(tensors=[tensor("w", (4,), 0, 1 << 40)], data=DATA),
        r"but the file has \d+",
    ),
    "offset that wraps": (
        raw_gguf(tensors=[tensor("w", (4,), 0, (1 << 64) - 32)], data=DATA),
        r"but the file has \d+",
    ),
    "data cut short": (
        raw_gguf(tensors=[tensor("w", (2000,))], data=DATA),
        r"takes bytes \d+ to \d+, but the file has",
    ),
    "overlap": (
        raw_gguf(tensors=[tensor("v", (16,)), tensor("w", (16,), 0, 32)], data=DATA),
        r"'v' and 'w' overlap",
    ),
    "tensor twice": (
        raw_gguf(tensors=[tensor("w", (8,)), tensor("w", (8,), 0, 32)], data=DATA),
        r"tensor 'w' occurs twice",
    ),
    "two names for one weight": (
        raw_gguf(tensors=[tensor("output.weight", (8,)), tensor("lm_head.weight", (8,), 0, 32)], data=DATA),
        r"tensors 'lm_head.weight' and 'lm_head.weight' are the same weight",
    ),
    "split": (
        raw_gguf([key("split.count", 2, b"\3\0")]),
        r"is one of 3 parts of a split model.*gguf-split --merge",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_one_clear_error(case: str, tmp_path: Path) -> None:
    content, message = CASES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        GgufCheckpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2 << 20, "a small file made the reader allocate a lot"


def test_an_empty_or_absent_file(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match=r"cannot map .*empty\.gguf"):
        GgufCheckpoint(tmp_path / "empty.gguf")
    with pytest.raises(CheckpointError, match=r"cannot map .*none\.gguf: .*No such file"):
        GgufCheckpoint(tmp_path / "none.gguf")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    padding = 32  # the last tensor may end before the padding of the file does
    for length in range(1, len(whole) - padding, 997):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            GgufCheckpoint(path)


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensor w has 12 bytes, its shape asks for 16"):
        write_gguf(
            tmp_path / "m.gguf",
            {},
            [OutTensor(name="w", shape=(4,), type_id=0, data=np.zeros(3, np.float32))],
        )
    with pytest.raises(ConfigError, match=r"metadata a = \[1, 'x'\] has no GGUF type"):
        write_gguf(tmp_path / "m.gguf", {"a": [1, "x"]}, [])
