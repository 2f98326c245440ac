"""Whether output or a value is the expected one; on the host, of plain data alone."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import Any

# Exponents are compared, never written out: 1e999999999 is short, its digits are not.
_CONTEXT = decimal.Context(prec=100, traps=[decimal.InvalidOperation])
_SCALARS = {"int": lambda text: int(text, 16), "float": float.fromhex}
_MAX_NUMBER_CHARACTERS = 100  # assumed: a longer word is compared as text


def is_same_output(printed: str, expected: str) -> bool:
    """Lines that are stripped are equal; in those that are not, words that are equal numbers.

    Source: the released grader of LiveCodeBench.
    """
    a, b = _lines(printed), _lines(expected)
    return len(a) == len(b) and all(map(_is_same_line, a, b))


def is_same_value(returned: Any, expected: Any) -> bool:
    """Equal as the released grader's JSON values are: a tuple is a list, 4.0 is 4, True is 1.

    Unlike there, a list of one value is not that value. What the candidate sent is only walked
    through: no set or table is built of keys that it chose, but of strings.

    Args:
        returned: as `inside.encode` spells it, or anything else that JSON can hold.
        expected: of JSON.
    """
    pending = [(returned, expected)]  # not recursive: depth is the candidate's choice
    while pending:
        a, b = pending.pop()
        kind, content = _opened(a)
        if isinstance(b, list):
            if kind not in ("list", "tuple") or len(content) != len(b):
                return False
            pending += zip(content, b, strict=True)
        elif isinstance(b, dict):
            items = _items(content) if kind == "dict" else None
            if items is None or items.keys() != b.keys():
                return False
            pending += [(items[key], b[key]) for key in b]
        elif kind != "scalar" or (content != b and (content == content or b == b)):
            return False
    return True


def _opened(value: Any) -> tuple[str, Any]:
    """(kind, content) of a value that `inside.encode` wrote, or of something that it did not."""
    if isinstance(value, list):
        return "list", value
    if not isinstance(value, dict):
        return "scalar" if not isinstance(value, float) else "", value
    kind, content = next(iter(value.items()), ("", None))
    if len(value) != 1 or not isinstance(content, str if kind in _SCALARS else list):
        return "", None
    try:
        return ("scalar", _SCALARS[kind](content)) if kind in _SCALARS else (kind, content)
    except (ValueError, OverflowError):
        return "", None


def _items(pairs: Sequence[Any]) -> dict[str, Any] | None:
    """A dictionary of strings; None if it is none."""
    right = all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs)
    return dict(pairs) if right else None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _is_same_line(a: str, b: str) -> bool:
    if a == b:
        return True
    words, expected = a.split(), b.split()
    return len(words) == len(expected) and all(map(_is_same_word, words, expected))


def _is_same_word(a: str, b: str) -> bool:
    if a == b:
        return True
    numbers = _number(a), _number(b)
    return None not in numbers and numbers[0] == numbers[1]


def _number(word: str) -> decimal.Decimal | None:
    if len(word) > _MAX_NUMBER_CHARACTERS or "_" in word:
        return None
    try:
        number = _CONTEXT.create_decimal(word)
    except decimal.InvalidOperation:
        return None
    return number if number.is_finite() else None
