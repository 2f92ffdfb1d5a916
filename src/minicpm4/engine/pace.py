"""How many tokens of prompts run beside decoding, so that a long prompt does not stop running answers.

Measured, not computed: what a step costs depends on the machine, the depth and the neighbours of the hour.
So the same requests may be cut otherwise the next time: for servers, whose batches are never the same.
"""

from __future__ import annotations

LEAST = 8  # tokens of prompts beside decoding, however slow: prompts end
PROBE_EVERY = 16  # steps with prompts, after which one without tells anew what decoding takes alone
SMOOTH = 0.3  # weight of the newest measurement
FASTEST, SLOWEST = 1.25, 0.5  # most that the tokens change by from one step to the next


class Pace:
    """Holds steps that decode to ``most`` times as long as they would take without prompts.

    ``room(decoding)`` says how many tokens of prompts to run beside so many decoding sequences;
    ``note`` what a step has taken.
    """

    def __init__(self, most: float = 1.75) -> None:
        assert most > 1, "prompts would starve"
        self._most = most
        self._alone: dict[int, float] = {}  # seconds of a step, by how many sequences decode
        self._since: dict[int, int] = {}  # steps with prompts since that was measured
        self._rows = 2.0 * LEAST

    def room(self, decoding: int) -> int | None:
        """Tokens of prompts; 0: none, to see what decoding takes alone; None: as many as fit."""
        if not decoding:
            return None
        if decoding not in self._alone or self._since[decoding] >= PROBE_EVERY:
            return 0
        return int(self._rows)

    def note(self, decoding: int, prompts: int, seconds: float) -> None:
        """A step took ``seconds``, with so many decoding sequences and tokens of prompts."""
        if not decoding:
            return
        if not prompts:
            before = self._alone.get(decoding, seconds)
            self._alone[decoding] = before + SMOOTH * (seconds - before)
            self._since[decoding] = 0
            return
        self._since[decoding] = self._since.get(decoding, PROBE_EVERY) + 1
        alone = self._alone.get(decoding)
        if alone is None or prompts < self._rows / 2:  # the last tokens of a prompt: they tell little
            return
        beyond = max(seconds - alone, 1e-9)
        change = min(max((self._most - 1) * alone / beyond, SLOWEST), FASTEST)
        self._rows = max(LEAST, min(prompts * change, 1 << 16))
