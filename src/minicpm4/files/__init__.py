"""Files and folders written whole or not at all, locks between processes, small files read within bounds.

No other part of this package renames or locks a file.
"""

from minicpm4.files.checksums import CHECKSUMS, FileSums, file_sha256, read_checksums, write_checksums
from minicpm4.files.encodings import UndecodableError, decode_page, decode_text, line_ends, lines_of
from minicpm4.files.json_values import finite, json_text
from minicpm4.files.kept import Kept, keeping
from minicpm4.files.locks import lock
from minicpm4.files.reading import (
    LFS_REMEDY,
    MAX_VALUES,
    is_lfs_pointer,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)
from minicpm4.files.whole import (
    Part,
    check_writing,
    growing,
    making,
    part_name,
    publish,
    remove_folder,
    sweep,
    sync,
    write_file,
    write_json,
    writing,
    writing_folder,
    writing_path,
)
from minicpm4.files.zips import opened_zip

__all__ = [
    "CHECKSUMS",
    "LFS_REMEDY",
    "MAX_VALUES",
    "FileSums",
    "Kept",
    "Part",
    "UndecodableError",
    "check_writing",
    "decode_page",
    "decode_text",
    "file_sha256",
    "finite",
    "growing",
    "is_lfs_pointer",
    "json_text",
    "keeping",
    "line_ends",
    "lines_of",
    "lock",
    "making",
    "opened_zip",
    "parse_json",
    "part_name",
    "publish",
    "read_bytes",
    "read_checksums",
    "read_json",
    "read_text",
    "remove_folder",
    "sweep",
    "sync",
    "write_checksums",
    "write_file",
    "write_json",
    "writing",
    "writing_folder",
    "writing_path",
]
