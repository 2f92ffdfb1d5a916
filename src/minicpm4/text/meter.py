"""What templates of others may take: one budget of time and of bytes, which everything that they can do is
charged to before it is done.

A charge is an upper bound of the bytes that an operation makes, or more where it is slow beside that. Values
are measured as they would be printed: a list that stands twice in another counts twice. So is what only looks
at values, such as comparing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from minicpm4.errors import TextError

__all__ = [
    "FREE_FILTERS",
    "ITEM",
    "LAZY_FILTERS",
    "MAX_BITS",
    "MAX_CHARS",
    "Meter",
    "filter_cost",
    "is_scalar",
    "method_cost",
    "percent_cost",
]

BUDGET = 1 << 30  # bytes of one render
MAX_CHARS = 64 << 20  # of one text
ITEM = 64  # bytes that an item of a list takes beside its value, about
MAX_DEPTH = 200
MAX_KEY = 1024  # what is looked for in a list or a mapping
MAX_BITS = 4096  # of whole numbers
_SCALARS = (str, int, float, bool, type(None), Undefined)
_PERCENT = re.compile(r"%(?:\([^)]*\))?([-+ #0]*[0-9*]*(?:\.[0-9*]*)?)")
_DIGITS = re.compile("[0-9]{1,20}")
_BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

Args = Sequence[Any]
Named = Mapping[str, Any]


def is_scalar(value: Any) -> bool:
    """Whether a value has no parts."""
    return isinstance(value, _SCALARS)


class Meter:
    """What is left to one render: ``start`` it, then ``spend`` before anything is done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = 0.0
        self._left = 0

    def start(self) -> None:
        self._deadline = time.monotonic() + self.seconds
        self._left = BUDGET

    def tick(self) -> None:
        """Raise TextError when time is used up."""
        if time.monotonic() > self._deadline:
            raise TextError(
                f"the chat template ran for over {self.seconds:g} s", "it may loop: use another template"
            )

    def spend(self, nbytes: int) -> None:
        """Raise TextError when more than what is left is asked for."""
        self._left -= nbytes
        if self._left < 0:
            raise TextError(
                f"the chat template builds values of over {BUDGET:,} bytes, which is too large",
                "use another template, or a shorter chat",
            )

    def size(self, value: Any) -> int:
        """Bytes of a value as it would be printed. Raises TextError where that is beyond all bounds."""
        return value.__sizeof__() if isinstance(value, str) else self._size(value, {}, 0)

    def depth_cost(self, value: Any, indent: int) -> int:
        """Bytes that indenting each part of a value by its depth takes at most."""
        return self.size(value) // 8 * indent * MAX_DEPTH if indent else 0

    def looked_for(self, value: Any) -> Any:
        """``value``, which is compared with all items of a list or hashed. Raises TextError for a large one
        that has parts."""
        if not is_scalar(value) and self.size(value) > MAX_KEY:
            raise TextError(f"the chat template looks for a value of over {MAX_KEY} bytes in others")
        return value

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each charged for and with an eye on the time."""
        for item in items:
            self.tick()
            self.spend(ITEM)
            yield item

    def whole(self, value: Any) -> Any:
        """``value``, or where it is made while it is asked for, a list of it."""
        return list(self.each(value)) if isinstance(value, Iterator) else value

    def _size(self, value: Any, known: dict[int, int], depth: int) -> int:
        if isinstance(value, str):
            return value.__sizeof__()
        if isinstance(value, int):
            return 32 + value.bit_length() // 3
        parts = _parts(value)
        if parts is None:
            return ITEM
        if depth > MAX_DEPTH:
            raise TextError(f"the chat template nests values over {MAX_DEPTH} deep, or in themselves")
        found = known.get(id(value))
        if found is None:
            self.tick()
            self.spend(
                ITEM * (1 + len(value) if hasattr(value, "__len__") else 1) // 2
            )  # looking takes time as well
            found = ITEM + sum(self._size(part, known, depth + 1) + 8 for part in parts)
            if found > BUDGET:
                raise TextError(
                    f"the chat template builds a value of over {BUDGET:,} bytes, which is too large"
                )
            known[id(value)] = found
        return found


def _parts(value: Any) -> Iterable[Any] | None:
    """Of what has parts."""
    if isinstance(value, Mapping):
        return (part for pair in value.items() for part in pair)
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        return attributes.values()
    if isinstance(value, list | tuple | set | frozenset | type({}.items()) | type({}.values())):
        return value
    return None


def _width(value: Any) -> int:
    """What a width that is asked for may add, in characters."""
    return abs(value) if isinstance(value, int) else len(value) if isinstance(value, str) else 0


def _widest(args: Args, named: Named) -> int:
    """Raises TextError where it is over MAX_CHARS."""
    found = max((_width(value) for value in (*args, *named.values())), default=0)
    if found > MAX_CHARS:
        raise TextError(f"the chat template pads to {found} characters, which is too many")
    return found


def percent_cost(pattern: str, values: Any, size: Callable[[Any], int]) -> int:
    """Bytes of ``pattern % values`` at most. Raises TextError for widths that stand in the values."""
    widths = _PERCENT.findall(pattern)
    if any("*" in part for part in widths):
        raise TextError("the chat template formats with a width of *", "this is not supported")
    digits = sum(int(width) for part in widths for width in _DIGITS.findall(part))
    times = pattern.count("%") if isinstance(values, Mapping) else 1
    return len(pattern) + digits + times * size(values)


# Methods of str beside those that make no more than they are given.


def _split_cost(text: str, args: Args, named: Named) -> int:
    sep = args[0] if args else named.get("sep")
    return ITEM * (text.count(sep) if sep and isinstance(sep, str) else sum(map(text.count, _BLANKS)))


def _replace_cost(text: str, args: Args, named: Named) -> int:
    old, new = (*args, *named.values(), "", "")[:2]
    if not isinstance(old, str) or not isinstance(new, str):
        return 0  # which is an error
    return (text.count(old) if old else len(text) + 1) * new.__sizeof__()


def _join_cost(text: str, args: Args, named: Named) -> int:
    items = args[0] if args else ()
    return sum(len(text) + (item.__sizeof__() if isinstance(item, str) else 0) for item in items)


_METHOD_COSTS: dict[str, Callable[[str, Args, Named], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda text, args, named: _widest(args, named)),
    "expandtabs": lambda text, args, named: text.count("\t") * (_widest(args, named) or 8),
    "join": _join_cost,
    "replace": _replace_cost,
    **dict.fromkeys(("split", "rsplit"), _split_cost),
    "splitlines": lambda text, args, named: ITEM * sum(map(text.count, _ENDS)),
}
_REFUSED_METHODS = ("translate", "maketrans")


def method_cost(text: str, name: str, args: Args, named: Named) -> int:
    """Bytes that calling method ``name`` of ``text`` makes at most; "format" is charged for as it goes."""
    if name in _REFUSED_METHODS:
        raise TextError(f"the chat template calls {name}() of a text", "this is not supported")
    cost = _METHOD_COSTS.get(name)
    own = 6 if hasattr(text, "__html__") else 1  # Markup escapes
    return own * text.__sizeof__() + (0 if cost is None else cost(text, args, named))


# Filters: those that make nothing, or charge for what they make as they go.
LAZY_FILTERS = frozenset(("map", "reject", "rejectattr", "select", "selectattr"))  # item by item
FREE_FILTERS = LAZY_FILTERS | {
    "abs", "attr", "count", "d", "default", "first", "float", "format", "int", "items", "last", "length",
    "reverse", "sum",
}  # fmt: skip
# How many bytes are charged for one of what a filter is given: what it makes, and what it takes of time.
_FACTORS = {
    "dictsort": 32, "groupby": 32, "max": 32, "min": 32, "pprint": 512, "sort": 32, "striptags": 64,
    "title": 64, "unique": 32, "urlencode": 16, "urlize": 256, "wordcount": 64, "wordwrap": 64, "xmlattr": 16,
    "escape": 6, "e": 6, "forceescape": 6, "tojson": 8,
}  # fmt: skip


def filter_cost(name: str, value: Any, args: Args, named: Named, meter: Meter) -> int:
    """Bytes that are to be charged for a filter that is not free, beside those of ``value``, which are
    charged here: what is too large to be looked at is refused before it is."""
    size = meter.size(value)
    meter.spend(size)
    cost = _FACTORS.get(name, 2) * size + sum(meter.size(one) for one in (*args, *named.values()))
    widest = _widest(args, named)
    if name == "center":
        cost += widest
    elif name in ("slice", "batch"):
        cost += ITEM * (widest + (len(value) if hasattr(value, "__len__") else 0))
    elif name == "list" and hasattr(value, "__len__"):
        cost += ITEM * len(value)
    elif name == "indent":
        cost += widest * (1 + sum(map(str(value).count, _ENDS)))
    elif name == "tojson":
        cost += meter.depth_cost(value, _width(named.get("indent", args[1] if len(args) > 1 else 0)))
    elif name == "replace":
        cost += _replace_cost(str(value), args, named)
    elif name in ("striptags", "wordwrap"):
        cost += len(str(value)) ** 2 // 8  # each tag, or piece of a long word, is cut out of all that follows
    elif name == "round" and widest > MAX_BITS:
        raise TextError(f"the chat template rounds to {widest} digits, which is too many")
    return cost
