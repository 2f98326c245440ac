"""A text in pieces, as a stream brings it."""

import random


def cuts(text: str):
    """Whole, by character, and at random."""
    yield [text]
    yield [*text]
    rng = random.Random(0)
    for _ in range(20):
        at = sorted(rng.choices(range(len(text) + 1), k=rng.randint(1, 6)))
        yield [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
