"""``python -m minicpm4`` is the command ``minicpm4``, which begins here."""

import _signal  # type: ignore[import-not-found]
import _thread
import sys
import time

from minicpm4 import ends_at_once


def _sent_again(lost: "sys.UnraisableHookArgs") -> None:
    """What Python does with an exception that nothing can catch, in a finalizer or the callback of a weak
    reference (of which imports run many): it prints it and goes on. A signal's came by chance there; it is
    sent once more, as the command would have gone on without a word about it."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        number = int(_signal.SIGINT)
    elif isinstance(lost.exc_value, SystemExit) and isinstance(lost.exc_value.code, int):
        number = lost.exc_value.code - 128  # minicpm4.machine.signals.ended_in_order
    else:
        number = 0
    if number <= 0:
        sys.__unraisablehook__(lost)
        return

    here = _thread.get_ident()  # the main thread: no other is sent exceptions by signals

    def send() -> None:
        time.sleep(0.002)  # until the callback is over
        if hasattr(_signal, "pthread_kill"):
            _signal.pthread_kill(here, number)  # it also ends a wait
        else:
            _thread.interrupt_main(number)  # type: ignore[arg-type]  # any int does

    _thread.start_new_thread(send, ())


def main() -> None:
    """Entry point of the command ``minicpm4``. Ctrl-C is exit code 130 from the package's first line on
    (``minicpm4.ends_at_once``), and while the interpreter ends it is the end without a word."""
    try:
        sys.unraisablehook = _sent_again
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
