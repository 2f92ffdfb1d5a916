"""Code that strangers wrote, run where it can harm nothing, and judged from where it cannot reach.

    from minicpm4.sandbox import Limits, judge_function, run_python
    run_python("print(6 * 7)").stdout                      # b"42\\n"
    judge_function(solution, tests, "name").passed         # HumanEval's way: tests call the function

A program gets namespaces of its own (bubblewrap): no network, no processes but its own, of the files those of
Python and of the system's libraries, read-only, and a folder in which it may write what it is allowed, or
nothing. A seccomp filter refuses what it has no use for: further processes, sockets, tracing, mounts, new
namespaces. Time, memory, files and output are bounded; what goes beyond ends it, all its threads with it.

What this does not cover: faults of the kernel itself; side channels; processor time of others, of which it
may use a core as long as its time lasts. Linux alone has it; elsewhere, and where bubblewrap or libseccomp is
absent, it is refused with what to install: nothing is ever run outside.
"""

from __future__ import annotations

from minicpm4.sandbox.judge import Verdict, judge_function
from minicpm4.sandbox.limits import Limits
from minicpm4.sandbox.place import require_sandbox
from minicpm4.sandbox.run import Outcome, run_python

__all__ = ["Limits", "Outcome", "Verdict", "judge_function", "require_sandbox", "run_python"]
