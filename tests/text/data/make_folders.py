"""Make folders_VERSION.json.gz beside this file: folders that transformers saved, with the ids that it reads.

python make_folders.py      with transformers 5.23, and again with 4.57
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.text.families import CHATS, FAMILIES, reference_chat, save, texts  # noqa: E402


def main() -> None:
    import transformers

    folders: dict[str, Any] = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            save(name, folder)
            read = transformers.AutoTokenizer.from_pretrained(folder)
            cases = texts(3, 120, list(read.get_added_vocab()))
            folders[name] = {
                "files": {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())},
                "cases": [[text, read.encode(text, add_special_tokens=False)] for text in cases],
                "around": read.encode("a"),
                "chats": [reference_chat(read, chat) for chat in CHATS],
            }
    version = ".".join(transformers.__version__.split(".")[:2])
    content = json.dumps({"transformers": version, "folders": folders}, separators=(",", ":")).encode()
    (HERE / f"folders_{version}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))


if __name__ == "__main__":
    main()
