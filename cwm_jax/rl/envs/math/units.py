"""Units after a number, of which an answer may leave out its own but not take another."""

from __future__ import annotations

import re

# Spellings of the units that answers have most often; assumed.
_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "dollar": "",
    "cent": "",
    "degree": "deg",
    "radian": "rad",
    "unit": "",
    "mph": "",
}
_CANONICAL = {
    spelling: name for name, words in _SPELLINGS.items() for spelling in (name, *words.split())
}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_IN_TEXT = re.compile(r"(.*[^\s\\])\s*\\text\s*\{([^{}]*)\}\s*(?:\^([23]))?", re.DOTALL)
# One way to match a text: words as a repeated group took time exponential in an answer's length.
_BARE = re.compile(r"(.*[\d)}])\s*([a-zA-Z][a-zA-Z.\s]*)(?:\^([23]))?", re.DOTALL)


def split_unit(text: str, *, letters: bool = False) -> tuple[str, str]:
    """(what comes before the unit, the unit); the unit is empty if there is none.

    Words in ``\\text`` after something are a unit; others only where all of them are known.

    Args:
        text: an answer, tidied.
        letters: whether a bare letter, as ``m``, may be a unit: it may be a name of a number, too.
    """
    if text.startswith(r"\$"):
        return text[2:].strip(), "dollar"
    if match := _IN_TEXT.fullmatch(text):
        return match[1], _canonical(match[2], match[3])
    match = _BARE.fullmatch(text)
    if match and all(_is_known(word, letters) for word in match[2].split()):
        return match[1], _canonical(match[2], match[3])
    return text, ""


def _is_known(word: str, letters: bool) -> bool:
    word = word.strip(".").lower()
    if len(word) < 2 and not letters:
        return False
    return word in _POWERS or _singular(word) in _CANONICAL or word == "percent"


def _canonical(words: str, power: str | None) -> str:
    parts, powers = [], [power or ""]
    for word in words.replace(".", " ").lower().split():
        if word in _POWERS:
            powers.append(_POWERS[word])
        elif word == "per":
            parts.append("/")
        else:
            parts.append(_CANONICAL.get(_singular(word), _singular(word)))
    return "".join([*parts, *powers])


def _singular(word: str) -> str:
    if word in _CANONICAL:
        return word
    return word.removesuffix("s") if len(word) > 2 else word
