"""Who owns which page of the key/value pool. Integers only: no array is touched here.

Every page is in one of three states: free (no owner, worthless), cached (no owner, but its content
is known by its hash and may be asked for again) or owned (by one or more sequences). Only full
pages are ever known by hash; the hash chains over all pages before it, so equal hashes mean equal
prefixes. With block-sparse attention this stays true: the compressed keys in a page depend on that
prefix only.

Writing goes to a page that one sequence owns and no hash describes: ``ensure`` sees to it, and
returns the copies that must be done first (copy on write).
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple

from minicpm4.engine.sequence import Sequence

Copy = tuple[int, int]  # (source page, target page)


class PageKey(NamedTuple):
    """What a full page is known by: the hash of all tokens up to its end, that of the page before (for the
    first the root), and its own tokens, four bytes each."""

    digest: bytes
    parent: bytes
    tokens: bytes


class PageAllocator:
    """Pages 0 to ``num_pages`` - 1 of ``page_size`` tokens.

    ``salt`` sets apart contents that equal tokens do not make equal (another model, another
    attention). Methods that take pages return None or False, and change nothing, when too few are
    left.
    """

    def __init__(
        self, num_pages: int, page_size: int, *, prefix_cache: bool = True, salt: bytes = b""
    ) -> None:
        assert num_pages > 0 and page_size > 0
        self.num_pages, self.page_size = num_pages, page_size
        self._prefix_cache = prefix_cache
        self._root = blake2b(salt, digest_size=16).digest()
        self._owners = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self.sealed: deque[tuple[int, PageKey]] | None = None
        """Where ``seal`` notes the pages that have become findable; None: nowhere."""

    @property
    def num_available(self) -> int:
        """Pages that can be handed out: free ones, and cached ones given up for it."""
        return len(self._free) + len(self._cached)

    def pages_for(self, length: int) -> int:
        """Pages that ``length`` tokens take."""
        return -(-length // self.page_size)

    def admit(self, sequence: Sequence, reserve: int = 0) -> bool:
        """Give a sequence without pages the cached pages of its prefix, and fresh ones for the rest.

        At least its last token is left to run, since its logits are wanted; of a sequence that is only read,
        all. ``reserve`` pages must stay available.
        """
        assert not sequence.pages and sequence.computed == 0
        found = self._lookup(sequence)
        missing = self.pages_for(len(sequence.tokens)) - len(found)
        idle = sum(1 for page in found if not self._owners[page])
        if missing > self.num_available - idle - reserve:
            return False
        for page in found:
            self._own(page)
        sequence.pages = found + [self._take() for _ in range(missing)]
        sequence.computed = len(found) * self.page_size
        sequence.sealed = len(found)
        return True

    def cached(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens would now be found."""
        return len(self._lookup(sequence)) * self.page_size

    def ensure(self, sequence: Sequence, length: int) -> list[Copy] | None:
        """Make positions computed to ``length`` - 1 writable; return the copies that it takes."""
        first = sequence.computed // self.page_size
        fresh = max(self.pages_for(length) - len(sequence.pages), 0)
        shared = (
            first < len(sequence.pages)
            and length > sequence.computed
            and self._owners[sequence.pages[first]] > 1
        )
        if fresh + shared > self.num_available:
            return None
        copies = []
        if shared:
            source = sequence.pages[first]
            sequence.pages[first] = self._take()
            self._disown(source)
            copies.append((source, sequence.pages[first]))
        elif first < len(sequence.pages) and length > sequence.computed:
            self._forget(sequence.pages[first])
        sequence.pages += [self._take() for _ in range(fresh)]
        return copies

    def seal(self, sequence: Sequence) -> None:
        """Make the full pages that have been computed findable by later prompts."""
        full = sequence.computed // self.page_size
        if not self._prefix_cache:
            return
        for index in range(sequence.sealed, full):
            page, digest = sequence.pages[index], self._digest(sequence, index)
            if digest not in self._page_of and page not in self._hash_of:
                self._page_of[digest], self._hash_of[page] = page, digest
                if self.sealed is not None:
                    self.sealed.append((page, self._key(sequence, index)))
        sequence.sealed = max(sequence.sealed, full)

    def holds(self, page: int, digest: bytes) -> bool:
        """Whether a page still is what was sealed under that hash."""
        return self._hash_of.get(page) == digest

    def missing(self, sequence: Sequence) -> PageKey | None:
        """The first full page of a waiting sequence's prefix that is not here; None where all are, or where
        nothing is looked for."""
        index = len(self._lookup(sequence))
        if not self._prefix_cache or sequence.is_read or index >= self._last_full(sequence):
            return None
        return self._key(sequence, index)

    def bring(self, sequence: Sequence, fill: Callable[[int, PageKey], bool], most: int) -> tuple[int, bool]:
        """Have ``fill(page, key)`` put what is kept elsewhere into pages that follow those of a waiting
        sequence's prefix that are here, ``most`` at a time, until it says False. They are cached then, as if
        computed and released. Returns how many have come, and whether more may."""
        found = self._lookup(sequence)
        self._refresh(found)
        begin, last = len(found), self._last_full(sequence)
        for index in range(begin, min(last, begin + most)):
            idle = sum(1 for page in found if not self._owners[page])
            if self.num_available <= idle:  # its own prefix would go
                return index - begin, False
            key = self._key(sequence, index)
            here = self._page_of.get(key.digest)
            if here is not None:  # one before it was given up, it was not
                self._refresh([here])
                found.append(here)
                continue
            page = self._take()
            if not fill(page, key):
                self._disown(page)
                return index - begin, False
            self._page_of[key.digest], self._hash_of[page] = page, key.digest
            self._disown(page)
            found.append(page)
        self._refresh(found)
        return len(found) - begin, len(found) < last

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Share the computed tokens of ``parent`` with ``child``, which has the same tokens.

        Takes no page: the first of the two that writes to the last, partly filled page copies it.
        """
        assert not child.pages and child.tokens[: parent.computed] == parent.tokens[: parent.computed]
        child.pages = parent.pages[: self.pages_for(parent.computed)]
        child.computed, child.sealed = parent.computed, parent.sealed
        child.digests = list(parent.digests)
        for page in child.pages:
            self._own(page)

    def trim(self, sequence: Sequence, length: int) -> None:
        """Forget what is computed from position ``length`` on, and the pages that only this needed."""
        keep = self.pages_for(length)
        self._disown_all(sequence.pages[keep:])
        del sequence.pages[keep:]
        sequence.computed = min(sequence.computed, length)
        sequence.sealed = min(sequence.sealed, length // self.page_size)
        del sequence.digests[length // self.page_size :]

    def release(self, sequence: Sequence) -> None:
        """Take all pages back. Sealed ones stay findable until their room is needed."""
        self._disown_all(sequence.pages)
        sequence.unload()

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Assert that every page is in exactly one state, owned by whom ``sequences`` say."""
        owners = Counter(page for sequence in sequences for page in sequence.pages)
        assert self._owners == [owners[page] for page in range(self.num_pages)], "owners miscounted"
        owned = {page for page, count in enumerate(self._owners) if count}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & cached or free & owned or cached & owned), "a page has two states"
        assert len(free) + len(cached) + len(owned) == self.num_pages, "a page is lost"
        assert {p: h for h, p in self._page_of.items()} == self._hash_of, "hashes do not match pages"
        assert cached <= self._hash_of.keys() and not free & self._hash_of.keys(), "wrongly cached"

    def _lookup(self, sequence: Sequence) -> list[int]:
        found: list[int] = []
        if not self._prefix_cache or sequence.is_read:
            return found
        for index in range(self._last_full(sequence)):
            page = self._page_of.get(self._digest(sequence, index))
            if page is None:
                break
            found.append(page)
        return found

    def _last_full(self, sequence: Sequence) -> int:
        """Pages of its prefix that may be found: one token at least is left to run."""
        return (len(sequence.tokens) - 1) // self.page_size

    def _refresh(self, pages: list[int]) -> None:
        """Cached ones of a prefix are the last to be given up, its last pages before its first."""
        for page in reversed(pages):
            if page in self._cached:
                self._cached.move_to_end(page)

    def _key(self, sequence: Sequence, index: int) -> PageKey:
        digest = self._digest(sequence, index)
        tokens = array("I", sequence.tokens[index * self.page_size : (index + 1) * self.page_size])
        before = sequence.digests[index - 1] if index else self._root_of(sequence)
        return PageKey(digest, before, tokens.tobytes())

    def _root_of(self, sequence: Sequence) -> bytes:
        """What equal tokens make equal begins here: those that attend otherwise have other numbers."""
        if not sequence.attention:
            return self._root
        return blake2b(self._root + sequence.attention.encode(), digest_size=16).digest()

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        for i in range(len(sequence.digests), index + 1):
            before = sequence.digests[i - 1] if i else self._root_of(sequence)
            tokens = array("I", sequence.tokens[i * self.page_size : (i + 1) * self.page_size])
            sequence.digests.append(blake2b(before + tokens.tobytes(), digest_size=16).digest())
        return sequence.digests[index]

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._owners[page] = 1
        return page

    def _own(self, page: int) -> None:
        self._cached.pop(page, None)
        self._owners[page] += 1

    def _disown_all(self, pages: list[int]) -> None:
        # Last pages first: they are the first to go, a prefix is worth more than what follows it.
        for page in reversed(pages):
            self._disown(page)

    def _disown(self, page: int) -> None:
        assert self._owners[page] > 0
        self._owners[page] -= 1
        if self._owners[page]:
            return
        if page in self._hash_of:
            self._cached[page] = None
        else:
            self._free.append(page)

    def _forget(self, page: int) -> None:
        digest = self._hash_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]
