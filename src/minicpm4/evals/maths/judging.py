"""The judge's own process: reads a line of JSON with what is right and what was said, answers with a line.

Run as a program; what it reads was written by a model, so its memory is bounded by who starts it.
"""

from __future__ import annotations

import json
import sys

SECONDS = 5  # of reading one text, and of comparing


def main() -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    print("{}", flush=True)  # it is ready
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            gold = parse(f"${asked['right']}$", parsing_timeout=SECONDS)
            said = parse(asked["said"], parsing_timeout=SECONDS)
            # What it does not understand it gives back as text.
            known = any(not isinstance(one, str) for one in gold)
            right = known and verify(gold, said, timeout_seconds=SECONDS)
            told = {"right": bool(right), "read": str(said[-1])[:200] if said else "", "known": known}
        except Exception as error:
            told = {"right": False, "read": "", "known": True, "why": type(error).__name__}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
