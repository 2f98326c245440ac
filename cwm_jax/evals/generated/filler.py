"""What haystacks are made of: plain sentences, Python functions, made-up words, all from a seed.

Every piece ends with a line end and begins with a letter: no token crosses from one to the next, so
that their tokens add up.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

_TIMES = (
    "in the morning", "after lunch", "late at night", "during the storm", "before the harvest",
    "in early spring", "on a quiet evening", "once the rain had stopped", "while nobody watched",
    "toward the end of summer", "when the bells rang", "for most of the winter", "at low tide",
)  # fmt: skip
_SUBJECTS = (
    "the baker", "an old fisherman", "the librarian", "a group of children", "the gardener",
    "my neighbour", "the clockmaker", "a travelling musician", "the ferry's crew", "the doctor",
    "a young painter", "the postman", "two brothers", "the miller's daughter", "a tired guide",
    "the school's cook", "a retired teacher", "the shepherd",
)  # fmt: skip
_VERBS = (
    "repaired", "carried", "described", "admired", "painted", "collected", "borrowed", "hid",
    "forgot", "polished", "watched over", "searched for", "traded", "measured", "brought back",
)  # fmt: skip
_OBJECTS = (
    "a wooden boat", "the copper kettles", "a basket of pears", "the broken window", "an old map",
    "the blue curtains", "a heavy ladder", "the garden gate", "some dried herbs", "a torn letter",
    "the silver spoons", "a pair of boots", "the long rope", "a jar of honey", "the stone bridge",
    "several lanterns", "the church organ",
)  # fmt: skip
_PLACES = (
    "near the river", "behind the mill", "in the upper village", "at the edge of the forest",
    "on the market square", "by the lighthouse", "in a narrow valley", "under the old oak",
    "beside the railway", "along the coast", "in the cellar", "across the meadow",
)  # fmt: skip
_ADJECTIVES = ("quiet", "cold", "empty", "warm", "dark", "busy", "calm", "bright", "muddy", "still")
_THINGS = (
    "river",
    "street",
    "harbour",
    "kitchen",
    "sky",
    "orchard",
    "house",
    "road",
    "hall",
    "sea",
)
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def word(rng: Random, syllables: int = 3) -> str:
    """One that no language has, such as ``bakoru``."""
    parts = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return "".join(parts)


def new_words(rng: Random, count: int, taken: Collection[str] = ()) -> list[str]:
    """Distinct ones that are not among ``taken``."""
    found: dict[str, None] = {}
    while len(found) < count:
        made = word(rng, rng.choice((2, 3, 3, 4)))
        if made not in taken:
            found[made] = None
    return [*found]


def number(rng: Random) -> str:
    """Seven digits."""
    return str(rng.randint(1_000_000, 9_999_999))


def sentence(rng: Random) -> str:
    """Plain English without figures or names; some are short, so that lengths can be met."""
    form = rng.randrange(5)
    who, did, what = rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_OBJECTS)
    if form == 0:
        text = f"the {rng.choice(_THINGS)} was {rng.choice(_ADJECTIVES)}"
    elif form == 1:
        text = f"{who} {did} {what}"
    elif form == 2:
        text = f"{who} {did} {what} {rng.choice(_PLACES)}"
    elif form == 3:
        text = f"{rng.choice(_TIMES)}, {who} {did} {what} {rng.choice(_PLACES)}"
    else:
        text = (
            f"the {rng.choice(_THINGS)} was {rng.choice(_ADJECTIVES)} {rng.choice(_TIMES)}, and "
            f"{who} {did} {what}"
        )
    return f"{text[0].upper()}{text[1:]}.\n"


def note(key: str, value: str) -> str:
    """The sentence that is to be found."""
    return f"Note: the access code of {key} is {value}.\n"


def constant_function(name: str, value: str) -> str:
    """A function that returns a number, or what another one returns: ``value`` is its source."""
    return f"def get_{name}():\n    return {value}\n\n\n"


def function(rng: Random, name: str) -> str:
    """One of several forms; a third of them return a constant."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    forms = (
        f"def scale_{name}(x):\n    return x * {a} + {b}\n\n\n",
        f"def sum_{name}(values):\n    total = {a}\n    for value in values:\n"
        f"        total += value % {b}\n    return total\n\n\n",
        f"def pick_{name}(x, y):\n    if x > y + {a}:\n        return x\n    return y - {b}\n\n\n",
        f"def join_{name}(parts):\n"
        f'    return "{rng.choice("-/:+")}".join(part.strip() for part in parts)\n\n\n',
    )
    if rng.random() < 1 / 3:
        return constant_function(name, number(rng))
    return rng.choice(forms)
