r"""Whether a gold answer can be compared: one that cannot fails whatever a policy writes."""

from __future__ import annotations

import re

from cwm_jax.rl.envs.math.comparison import is_refused, scalars
from cwm_jax.rl.envs.math.exact import MalformedError, number_of
from cwm_jax.rl.envs.math.units import split_unit

# The answers of most tasks; the others take some hundredths of a millisecond (measured).
_NUMBER = re.compile(r"-?\d{1,99}(?:\.\d{1,99})?|-?\\frac\{\d{1,99}\}\{\d{1,99}\}")
_MARKS = (
    (r"\boxed", "what the box holds, without a box"),
    ("####", "what stands after ####, and nothing else"),
)
_SAID = re.compile(r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+\s*")
# A word beside a space: letters without one may be a product.
_WORD = re.compile(r"(?<=\s)(?:[a-zA-Z]{3,}|or)\b|\b(?:[a-zA-Z]{3,}|or)(?=\s)")


def complaint_of_gold(answer: str) -> str:
    """What is wrong with a gold answer, and what is expected; empty if nothing is.

    Args:
        answer: in LaTeX, not empty.
    """
    if _NUMBER.fullmatch(answer):
        return ""
    for mark, expected in _MARKS:
        if mark in answer:
            return f"with {mark} in it; expected {expected}"
    if is_refused(answer):
        return "which the comparer refuses unread: it is too long or too deep; expected a short one"
    return next(filter(None, map(_complaint, scalars(answer))), "")


def _complaint(scalar: str) -> str:
    number, unit = split_unit(scalar)
    word = None if unit else _WORD.search(_SAID.sub("*", scalar))
    if word and re.search(r"\d", scalar):
        return (
            f"where {word[0]!r} beside a number is no unit that the comparer knows; expected "
            rf"numbers and formulas, other words as \text{{{word[0]}}}, several values with commas"
        )
    try:
        number_of(number)
    except MalformedError:
        found = f"where {scalar!r} makes no number" if scalar else "of which a part is empty"
        return (
            rf"{found}; expected LaTeX as \frac{{1}}{{2}}, 2\frac{{3}}{{4}} or 1,000, several "
            "values with commas"
        )
    return ""
