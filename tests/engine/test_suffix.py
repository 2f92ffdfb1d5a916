"""The suffix drafter finds the place that is most like the end of a text."""

from __future__ import annotations

from random import Random

from minicpm4.engine.drafter import Guess, Wish
from minicpm4.engine.sequence import Sequence
from minicpm4.engine.suffix import LENGTHS, LONGEST, SuffixDrafter


def guess(tokens: list[int], most: int = 4, drafter: SuffixDrafter | None = None) -> Guess | None:
    one = Sequence(0, tokens, 1000)
    return (drafter or SuffixDrafter()).guess([Wish(one, most, lambda _: True)])[0]


def drafts(tokens: list[int], most: int = 4) -> list[int]:
    found = guess(tokens, most)
    return [] if found is None else list(found.drafts.tokens)


def test_a_text_goes_on_as_it_did_before() -> None:
    assert drafts([1, 2, 3, 4, 5, 6, 7, 9, 1, 2]) == [3, 4, 5, 6]
    assert drafts([1, 2, 3, 4, 5, 6]) == [] == drafts([1]) == drafts([1, 1])


def test_more_alike_is_better_than_later() -> None:
    text = [5, 6, 7, 8, 11, 12, 0, 7, 8, 21, 22, 0, 5, 6, 7, 8]
    assert drafts(text, 2) == [11, 12]
    assert drafts([7, 8, 11, 0, 7, 8, 21, 0, 7, 8], 1) == [21]  # equally alike: the later


def test_what_repeats_is_guessed_past_the_end_of_the_text() -> None:
    assert drafts([1, 2, 3] * 3, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_chances_grow_with_what_is_alike() -> None:
    short, long = guess([1, 2, 3, 9, 1, 2]), guess([*range(40), 99, *range(30)])
    assert short is not None and long is not None
    assert short.chances[0] < long.chances[0] <= long.chances[-1] < 1


def test_it_finds_what_a_plain_search_finds() -> None:
    rng, drafter = Random(1), SuffixDrafter()
    text: list[int] = []
    for _ in range(400):
        text.append(rng.randrange(4))
        found = guess(text, 1, drafter)
        likest = max((alike(text, place) for place in range(len(text))), default=0)
        assert (found is not None) == (likest >= min(LENGTHS))
        if found is not None:
            nexts = {text[p] for p in range(len(text)) if alike(text, p) >= min(likest, max(LENGTHS))}
            assert found.drafts.tokens[0] in nexts


def alike(text: list[int], place: int) -> int:
    count = 0
    while count < min(place, LONGEST) and text[place - 1 - count] == text[len(text) - 1 - count]:
        count += 1
    return count


def test_each_sequence_knows_its_own_text_alone() -> None:
    drafter = SuffixDrafter()
    secret = Sequence(0, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 100)
    other = Sequence(1, [7, 8, 1, 2, 3, 4], 100)
    found = drafter.guess([Wish(one, 3, lambda _: True) for one in (secret, other)])
    assert found[0] is not None and found[1] is None
    drafter.drop(secret)
    assert list(drafter._texts) == [other.order] and not drafter._ended


def test_shared_texts_are_those_of_ended_sequences_up_to_a_bound() -> None:
    drafter = SuffixDrafter(shared=True, most=200)
    first = Sequence(0, [1, 2, 3, 4, 5, 6, 7], 1000)
    other = Sequence(1, [9, 1, 2, 3, 4], 1000)
    wish = Wish(other, 9, lambda _: True)
    assert drafter.guess([Wish(first, 3, lambda _: True), wish]) == [None, None]
    drafter.drop(first)
    found = drafter.guess([wish])[0]
    assert found is not None and found.drafts.tokens == (5, 6, 7), "and nothing of what came behind it"
    other.tokens[:] = [*range(20, 40), 21, 22, 23]  # its own text is more alike than none of the others
    found = drafter.guess([Wish(Sequence(2, other.tokens, 1000), 2, lambda _: True)])[0]
    assert found is not None and found.drafts.tokens == (24, 25)
    for number in range(3, 40):
        drafter.drop(Sequence(number, [100 * number + i for i in range(30)], 1000))
    assert sum(len(text.tokens) for text in drafter._ended) <= 200
    assert drafter.guess([wish])[0] is None, "the oldest have gone"
    drafter.start_over()
    assert not drafter._ended and not drafter._texts
