"""``python -m minicpm4`` is the command ``minicpm4``, which begins here."""

import sys


def main() -> None:
    """Entry point of the command ``minicpm4``. Ctrl-C is exit code 130 from the first import on."""
    try:
        from minicpm4.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # An interrupt that went through exec or eval (a dataclass that was being made) has the interpreter
        # end itself by the signal, caught or not, unless such code ran to its end later.
        exec("")  # noqa: S102


if __name__ == "__main__":
    main()
