"""Pages are never lost, nor shared by sequences whose tokens differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minicpm4.engine.pages import PageAllocator
from minicpm4.engine.sequence import Sequence
from tests.engine.model_cache import ModelCache

SIZE = 4


def sequence(*tokens: int, request_id: int = 0) -> Sequence:
    return Sequence(request_id, list(tokens), limit=100)


def filled(pages: PageAllocator, tokens: list[int]) -> Sequence:
    made = sequence(*tokens)
    assert pages.admit(made)
    made.computed = len(tokens)
    pages.seal(made)
    return made


def test_admit_takes_one_page_per_started_block() -> None:
    pages = PageAllocator(4, SIZE)
    made = sequence(*range(9))
    assert pages.admit(made)
    assert len(made.pages) == 3 and pages.num_available == 1


def test_admit_changes_nothing_when_pages_are_short() -> None:
    pages = PageAllocator(2, SIZE)
    made = sequence(*range(9))
    assert not pages.admit(made)
    assert made.pages == [] and pages.num_available == 2


def test_admit_leaves_the_reserve() -> None:
    pages = PageAllocator(3, SIZE)
    assert not pages.admit(sequence(*range(9)), reserve=1)
    assert pages.admit(sequence(*range(8)), reserve=1)


def test_equal_prefix_shares_full_pages() -> None:
    pages = PageAllocator(8, SIZE)
    first = filled(pages, list(range(10)))
    second = sequence(*range(10))
    pages.admit(second)
    assert second.pages[:2] == first.pages[:2] and second.pages[2] != first.pages[2]
    assert second.computed == 8


def test_the_last_token_is_always_left_to_run() -> None:
    pages = PageAllocator(8, SIZE)
    filled(pages, list(range(8)))
    second = sequence(*range(8))
    pages.admit(second)
    assert second.computed == 4


def test_released_prefix_is_found_again() -> None:
    pages = PageAllocator(4, SIZE)
    pages.release(filled(pages, list(range(9))))
    assert pages.num_available == 4
    again = sequence(*range(9))
    pages.admit(again)
    assert again.computed == 8


def test_pages_not_computed_are_not_found() -> None:
    pages = PageAllocator(8, SIZE)
    first = sequence(*range(9))
    pages.admit(first)
    first.computed = 5
    pages.seal(first)
    second = sequence(*range(9))
    pages.admit(second)
    assert second.computed == 4


def test_same_block_after_another_prefix_is_not_shared() -> None:
    pages = PageAllocator(8, SIZE)
    filled(pages, [1, 1, 1, 1, 2, 2, 2, 2, 0])
    other = sequence(3, 3, 3, 3, 2, 2, 2, 2, 0)
    pages.admit(other)
    assert other.computed == 0


def test_prefix_cache_can_be_off() -> None:
    pages = PageAllocator(8, SIZE, prefix_cache=False)
    filled(pages, list(range(9)))
    second = sequence(*range(9))
    pages.admit(second)
    assert second.computed == 0


def test_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    pages = PageAllocator(4, SIZE)
    pages.release(filled(pages, [1] * 9))
    pages.release(filled(pages, [2] * 4))
    pages.release(filled(pages, [7] * 8))  # takes one free page and gives up one of [1]'s tail
    again = sequence(*[1] * 9)
    pages.admit(again)
    assert again.computed == 4


def test_idle_cached_pages_that_match_are_not_counted_twice() -> None:
    pages = PageAllocator(3, SIZE)
    pages.release(filled(pages, list(range(8))))
    longer = sequence(*range(16))
    assert not pages.admit(longer), "two pages match, one is free, four are needed"
    pages.check([])


def test_salts_set_contents_apart() -> None:
    digests = []
    for salt in (b"dense", b"sparse"):
        pages = PageAllocator(2, SIZE, salt=salt)
        digests.append(filled(pages, [1] * 4).digests)
    assert digests[0] != digests[1]


def test_fork_shares_all_and_the_first_writer_copies() -> None:
    pages = PageAllocator(8, SIZE)
    parent = filled(pages, list(range(6)))
    child = parent.branch(1)
    pages.fork(parent, child)
    assert child.pages == parent.pages and pages.num_available == 6
    shared = parent.pages[1]
    assert pages.ensure(child, 7) == [(shared, child.pages[1])]
    assert pages.ensure(parent, 7) == [] and parent.pages[1] == shared


def test_fork_at_a_page_boundary_copies_nothing() -> None:
    pages = PageAllocator(8, SIZE)
    parent = filled(pages, list(range(8)))
    child = parent.branch(1)
    pages.fork(parent, child)
    assert pages.ensure(child, 9) == [] and len(child.pages) == 3


def test_ensure_without_room_for_the_copy_changes_nothing() -> None:
    pages = PageAllocator(2, SIZE)
    parent = filled(pages, list(range(6)))
    child = parent.branch(1)
    pages.fork(parent, child)
    assert pages.ensure(child, 7) is None
    pages.check([parent, child])


def test_trim_gives_back_pages_and_rewriting_forgets_the_hash() -> None:
    pages = PageAllocator(8, SIZE)
    made = filled(pages, list(range(12)))
    pages.trim(made, 6)
    assert len(made.pages) == 2 and made.computed == 6
    assert pages.ensure(made, 7) == []
    other = sequence(*range(9))
    pages.admit(other)
    assert other.computed == 4, "the page being rewritten must not be found"


def test_tokens_written_after_a_trim_are_found_by_their_own_hash() -> None:
    pages = PageAllocator(8, SIZE)
    made = filled(pages, [1] * 8)
    pages.trim(made, 2)
    made.tokens[2:] = [2] * 6
    pages.ensure(made, 8)
    made.computed = 8
    pages.seal(made)
    found = []
    for tokens in ([1] * 9, [1, 1, 2, 2, 2, 2, 2, 2, 0]):
        other = sequence(*tokens)
        pages.admit(other)
        found.append(other.computed)
    assert found == [0, 8]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 8))
def test_match_is_the_longest_common_full_pages(tokens: list[int], size: int) -> None:
    pages = PageAllocator(100, size)
    filled(pages, tokens)
    changed = [*tokens[:-1], 9, 9]
    second = sequence(*changed)
    pages.admit(second)
    assert second.computed == (len(tokens) - 1) // size * size


class Allocations(RuleBasedStateMachine):
    """Random admits, writes, forks, trims and releases over a model of what each page holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(7, 2)
        self.cache = ModelCache(self.pages)
        self.live: list[Sequence] = []

    def pick(self, number: int) -> Sequence:
        return self.live[number % len(self.live)]

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, tokens: list[int]) -> None:
        made = sequence(*tokens)
        if self.pages.admit(made):
            self.live.append(made)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9), count=st.integers(1, 5))
    def run(self, number: int, count: int) -> None:
        one = self.pick(number)
        stop = min(one.computed + count, len(one.tokens))
        copies = self.pages.ensure(one, stop)
        if copies is not None:
            self.cache.copy(copies)
            self.cache.write(one, one.computed, stop)
            one.computed = stop
            self.pages.seal(one)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9), token=st.integers(0, 1))
    def append(self, number: int, token: int) -> None:
        self.pick(number).tokens.append(token)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9))
    def fork(self, number: int) -> None:
        parent = self.pick(number)
        child = parent.branch(1)
        self.pages.fork(parent, child)
        self.live.append(child)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9), length=st.integers(1, 9))
    def trim(self, number: int, length: int) -> None:
        one = self.pick(number)
        length = min(length, len(one.tokens))
        self.pages.trim(one, length)
        del one.tokens[length:]

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 9))
    def release(self, number: int) -> None:
        one = self.pick(number)
        self.pages.release(one)
        self.live.remove(one)

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        self.pages.check(self.live)
        for one in self.live:
            self.cache.verify(one)


TestAllocations = Allocations.TestCase
