"""``python -m minicpm4`` is the command ``minicpm4``, which begins here."""

import _signal  # type: ignore[import-not-found]
import sys

from minicpm4 import ends_at_once


def main() -> None:
    """Entry point of the command ``minicpm4``. Ctrl-C is exit code 130 from the package's first line on
    (``minicpm4.ends_at_once``), and while the interpreter ends it is the end without a word."""
    try:
        if _signal.getsignal(_signal.SIGINT) is ends_at_once:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)  # it is caught from here on
        from minicpm4.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        import signal  # only now: what it imports would be interrupted before anything is caught

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # An interrupt that went through exec or eval (a dataclass that was being made) has the interpreter
        # end itself by the signal, caught or not, unless such code ran to its end later.
        exec("")  # noqa: S102


if __name__ == "__main__":
    main()
