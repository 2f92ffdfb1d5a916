"""Prompts by kind, as SPEED-Bench sorts them, to measure drafting; the texts are our own."""

from __future__ import annotations

from random import Random

from minicpm4.text.tokenizer import Tokenizer

CODE = '''class Basket:
    """What a customer has chosen so far."""

    def __init__(self, owner):
        self.owner = owner
        self.items = {}

    def add(self, name, price, count=1):
        if count < 1:
            raise ValueError("count must be at least 1")
        if name in self.items:
            old_price, old_count = self.items[name]
            self.items[name] = (price, old_count + count)
        else:
            self.items[name] = (price, count)

    def remove(self, name):
        if name not in self.items:
            raise KeyError(name)
        del self.items[name]

    def total(self):
        result = 0.0
        for price, count in self.items.values():
            result += price * count
        return result
'''
TEXT = (
    "The lighthouse on the northern cape was built in 1871, after three ships had been lost in one winter. "
    "Its lamp burned rapeseed oil at first, then paraffin, and since 1934 it has been electric. Keepers "
    "lived there with their families until 1988, when the station was automated. The last of them, Ingrid "
    "Solheim, kept a diary of the weather for thirty-one years; it is now in the town's museum. Today the "
    "tower belongs to a society of volunteers, who open it on Sundays from May to September. About four "
    "thousand people climb its 142 steps every year. The society plans to restore the fog horn, which has "
    "been silent since 1991, and to let two rooms of the keepers' house to guests."
)
PROMPTS: dict[str, tuple[str, ...]] = {
    "editing": (
        f"Rename `items` to `entries` everywhere in this code and print all of it:\n```python\n{CODE}```",
        f"Add a type hint to every parameter in this code and print all of it:\n```python\n{CODE}```",
    ),
    "quoting": (
        f"Repeat the following text word for word:\n\n{TEXT}",
        f"{TEXT}\n\nQuote, word for word, every sentence of this text that has a year in it.",
    ),
    "summarising": (f"Summarise this text in three sentences:\n\n{TEXT}",),
    "coding": (
        "Write a Python function that parses a CSV line with quoted fields, with a docstring and five tests.",
        "Write a Python class for a stack with push, pop, peek and size, and a short example of its use.",
    ),
    "mathematics": (
        "A train leaves at 9:40 and travels 210 km at 84 km/h. It stops for 12 minutes on the way. When does "
        "it arrive? Show each step.",
    ),
    "chat": (
        "I cannot decide between learning the piano and the guitar. What should I think about?",
        "Tell me a short story about a lighthouse keeper and a storm.",
    ),
    "translation": (f"Translate into French:\n\n{TEXT[:420]}",),
}


def repeating(tokenizer: Tokenizer, length: int = 400) -> list[int]:
    """Token ids among which each pair has been before and nothing follows from that: what a drafter that
    looks for repeats finds everywhere, and is always wrong about."""
    rng = Random(0)
    few = [rng.randrange(tokenizer.vocab_size // 8, tokenizer.vocab_size // 2) for _ in range(12)]
    return [rng.choice(few) for _ in range(length)]
