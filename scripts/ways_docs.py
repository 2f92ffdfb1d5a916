"""Write the map of ways into docs/architecture.md; ``--check`` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from minicpm4.kernels.ways import markdown

FILE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- ways: written by make docs -->\n", "<!-- end of ways -->\n"


def main() -> int:
    page = FILE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    fresh = before + BEGIN + "\n" + markdown() + "\n" + END + rest.partition(END)[2]
    if "--check" in sys.argv[1:]:
        return 0 if fresh == page else 1
    FILE.write_text(fresh, encoding="utf-8")
    print(f"wrote {FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
