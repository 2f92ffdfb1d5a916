"""``python -m minicpm4.evals.harness run --model minicpm4 …``: lm_eval's own command."""

from __future__ import annotations

import sys

from minicpm4.errors import Minicpm4Error


def main() -> int:
    """The exit code."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        print("error: lm_eval is not installed. pip install 'lm-eval==0.4.13'", file=sys.stderr)
        return 2
    from lm_eval.__main__ import cli_evaluate

    from minicpm4.evals.harness import model  # noqa: F401 - it makes itself known

    try:
        cli_evaluate()
    except Minicpm4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
