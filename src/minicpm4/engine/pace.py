"""How many tokens of prompts run beside decoding, so that a long prompt does not stop running answers.

Measured, not computed: what a step costs depends on the machine, the depth and the neighbours of the hour.
So the same requests may be cut otherwise the next time: for servers, whose batches are never the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

# Times as long as decoding alone, of the slowest step in a hundred. Promised is 2, between two tokens:
# the rest is for what a step cannot foresee, for neighbours and for the server's own work between two steps.
MOST = 1.6
UTMOST = 1.75  # where that is less than LEAST tokens of prompts
LEAST = 4  # beside decoding, as far as UTMOST allows; one, whatever it takes: prompts end
# Where many wait and few are answered, these are not kept fast at the cost of all who wait, and of how many
# answers are written together: each prompt but two then has as much time as CROWD answers. A text of over
# SHORT tokens has less, as its answer is far.
CROWD, SHORT = 8.0, 256
PROBE_EVERY = 16  # steps with prompts, after which one without tells anew what decoding takes alone
SLOWEST = 2.33  # deviations above the mean: one step in a hundred
OLDEST = 2  # the prompt that came first has half of the time, however many others come; all that is left over

_ALONE, _SPREAD = 0.1, 0.02  # weights of the newest measurement of decoding alone, for its mean and deviation
_HELD_UP = 2  # times what was expected: what took longer was held up by something, and is taken for so long
_MORE = 1.25  # times what is known of about as many sequences: taken for true of a first measurement
_FORGET = 0.95  # what earlier steps with prompts weigh after each
_FIRST = 8  # steps with prompts that are taken as they are: nothing says yet what is usual
_JUMP = 2  # times as many tokens as in the step before, at most
# Tokens to read that cost as much as the rest of a token's work, before anything was measured.
_DEPTH = 4096.0


class Pace:
    """Holds steps that decode to MOST times as long as they would take without prompts, but for one in a
    hundred, and but where a crowd of short prompts waits. ``room`` says what a step has for prompts, ``note``
    what it took."""

    def __init__(self) -> None:
        self._alone: dict[int, _Alone] = {}  # by how many sequences decode
        self._cost = _Cost()
        self._rows = 2.0 * LEAST  # of the largest of the last steps

    def room(self, decoding: int, rows: int, prompts: Iterable[int] = ()) -> Room:
        """What a step may run of ``prompts`` (how many tokens each has to go) beside ``decoding`` sequences,
        and at most ``rows`` tokens. None at all: to see what decoding takes alone."""
        if not decoding:
            return Room(rows)
        alone = self._alone.get(decoding)
        if alone is None or alone.since >= PROBE_EVERY:
            return Room(0)
        slow = alone.mean + SLOWEST * alone.deviation
        # Steps with prompts vary as much more as they are longer; what is beyond that is not of their making.
        varies = min(max(self._cost.deviation, alone.deviation), MOST * alone.deviation)
        taken = alone.mean + SLOWEST * varies
        most = min(rows, int(_JUMP * self._rows))
        crowd = 1 + CROWD * (sum(min(1.0, SHORT / count) for count in prompts) - 2) / decoding
        return Room(most, max(MOST, crowd) * slow - taken, (max(UTMOST, crowd) - 1) * slow, self._cost)

    def note(self, decoding: int, prompts: Iterable[tuple[int, int]], seconds: float) -> None:
        """A step took ``seconds``, with so many decoding sequences, and of each prompt (first position,
        number of tokens)."""
        if not decoding:
            return
        alone, rows, depths = self._alone.get(decoding), 0, 0.0
        for position, count in prompts:
            rows, depths = rows + count, depths + count * (position + count / 2)
        if not rows:
            if alone is None:
                near = min(self._alone, key=lambda count: abs(count - decoding), default=None)
                if near is not None:  # more sequences take more, but no more than in proportion
                    seconds = min(seconds, self._alone[near].mean * max(decoding / near, _MORE))
                self._alone[decoding] = _Alone(seconds)
            else:
                alone.note(seconds)
        elif alone is not None:
            alone.since += 1
            self._rows = max(rows, LEAST, _FORGET * self._rows)
            self._cost.note(rows, depths, seconds, alone.mean)


class _Alone:
    """What decoding takes alone: mean and deviation, in seconds. ``since``: steps with prompts since then."""

    def __init__(self, seconds: float) -> None:
        self.mean, self.since = seconds, 0
        self._square = 0.0

    @property
    def deviation(self) -> float:
        return sqrt(self._square)

    def note(self, seconds: float) -> None:
        # Measured seldom: one that was held up must not make room for the next PROBE_EVERY steps.
        beyond = min(seconds, _HELD_UP * self.mean) - self.mean
        self.mean += _ALONE * beyond
        self._square += _SPREAD * (beyond * beyond - self._square)
        self.since = 0


class _Cost:
    """What tokens of prompts take: ``row`` seconds each, and ``depth`` for each token that they read. Least
    squares over the last steps; ``deviation`` is of what these did not say."""

    def __init__(self) -> None:
        self.row = self.depth = 0.0
        self._square, self._steps = 0.0, 0
        # Sums over steps: rows², rows x depths, depths², rows x seconds, depths x seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def deviation(self) -> float:
        return sqrt(self._square)

    def of(self, position: int, count: int) -> float:
        """Seconds of ``count`` tokens from ``position`` on."""
        return count * (self.row + self.depth * (position + count / 2))

    def fitting(self, position: int, seconds: float) -> int:
        """How many tokens from ``position`` on take ``seconds``."""
        each = self.row + self.depth * position
        if seconds <= 0 or each <= 0:
            return 0 if seconds <= 0 else 1 << 30
        # each x n + depth x n² / 2 = seconds, solved so that depth = 0 is no special case
        return int(2 * seconds / (each + sqrt(each * each + 2 * self.depth * seconds)))

    def note(self, rows: int, depths: float, seconds: float, alone: float) -> None:
        """A step with so many tokens, which read ``depths``, took ``seconds``, and ``alone`` without them."""
        expected = rows * self.row + depths * self.depth
        self._steps += 1
        if self._steps > _FIRST:
            # A step that something else held up says little of prompts, and should not be the end of them.
            seconds = min(seconds, _HELD_UP * (alone + expected))
        seconds -= alone
        if self._steps > _FIRST:
            self._square += (1 - _FORGET) * ((seconds - expected) ** 2 - self._square)
        rr, rd, dd, rs, ds = (_FORGET * one for one in self._sums)
        rr, rd, dd = rr + rows * rows, rd + rows * depths, dd + depths * depths
        rs, ds = rs + rows * seconds, ds + depths * seconds
        self._sums = rr, rd, dd, rs, ds
        # A hundredth of what was seen says that depth costs what is usual: where all were equally deep,
        # nothing else tells the two apart.
        usual = 0.01 * rr
        row, depth = _solved(rr + usual, rd - usual * _DEPTH, dd + usual * _DEPTH**2, rs, ds)
        if row < 0 or depth < 0:
            row, depth = (max(rs, 0.0) / rr, 0.0) if depth < 0 else (0.0, ds / dd if dd else 0.0)
        self.row, self.depth = row, depth


def _solved(a: float, b: float, c: float, x: float, y: float) -> tuple[float, float]:
    """The solution of (a b; b c) · s = (x, y)."""
    determinant = a * c - b * b
    return (c * x - b * y) / determinant, (a * y - b * x) / determinant


class Room:
    """What a step has for prompts: ``most`` tokens, and ``seconds`` (None: no matter); where these are too
    few for LEAST tokens, ``utmost`` seconds."""

    def __init__(
        self,
        most: int,
        seconds: float | None = None,
        utmost: float = 0.0,
        cost: _Cost | None = None,
    ) -> None:
        self._most, self._seconds, self._utmost, self._cost = most, seconds, utmost, cost or _Cost()
        self._rows, self._spent = 0, 0.0  # of those taken
        self._kept = 1.0  # the part that is left to the oldest

    def share(self, position: int, count: int) -> None:
        """Others may take all but the oldest prompt's part, or more where it has fewer tokens to go,
        ``count`` from ``position`` on."""
        part = max(count / max(self._most, 1), 0.0)
        if self._seconds is not None and self._seconds > 0:
            part = max(part, self._cost.of(position, count) / self._seconds)
        self._kept = 1 - min(part, 1 / OLDEST)

    def release(self) -> None:
        """It is the oldest's turn: it may take all that is left."""
        self._kept = 1.0

    def fits(self, position: int) -> int:
        """How many more tokens may run, from ``position`` of their sequence on."""
        left = int(self._kept * self._most) - self._rows
        if self._seconds is None:
            return max(left, 0)
        timely = self._cost.fitting(position, self._kept * self._seconds - self._spent)
        utmost = self._cost.fitting(position, self._kept * self._utmost - self._spent)
        least = min(int(self._kept * LEAST) - self._rows, utmost)
        if self._kept == 1 and not self._rows:
            least = max(least, 1)
        return max(min(left, max(timely, least)), 0)

    def take(self, position: int, count: int) -> None:
        """``count`` tokens from ``position`` on are run."""
        self._rows += count
        self._spent += self._cost.of(position, count)
