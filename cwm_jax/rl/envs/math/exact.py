r"""Numbers in LaTeX as fractions: nothing is rounded, so 100001 is not 100002."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"|(?P<sign>\\frac(?![a-zA-Z])|\\sqrt(?![a-zA-Z])|[-+*/^(){}\[\]%]))"
)
_MAX_DIGITS = 4_000  # below what Python reads as an integer
_MAX_BITS = 20_000  # assumed: of a power; larger ones are left to others


class MalformedError(ValueError):
    """Numbers and signs that are no number, as ``1 2``."""


@dataclasses.dataclass(frozen=True)
class Number:
    """An exact value.

    Attributes:
        value: a percentage's is a hundredth of what is written.
        is_decimal: it is written as one decimal number with a fraction.
    """

    value: Fraction
    is_decimal: bool = False


class _NotExactError(ValueError):
    """Something that is not rational, or too large."""


def number_of(text: str) -> Number | None:
    """The value of tidied LaTeX; None where it has more than rational arithmetic.

    Raises:
        MalformedError: it has nothing else, and is no number.
    """
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if not match:
            return None
        tokens.append(match["number"] or match["sign"])
        at = match.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (_NotExactError, ZeroDivisionError, OverflowError):
        return None
    if parser.rest():
        raise MalformedError(f"{text!r} is no number")
    literal = text.lstrip("+-")
    is_decimal = len(tokens) <= 2 and "." in literal and value.denominator > 1
    return Number(value, is_decimal)


class _Parser:
    """Sums of products of powers; a whole number before a fraction is a mixed one."""

    def __init__(self, tokens: list[str]):
        self._tokens, self._at = tokens, 0

    def rest(self) -> list[str]:
        return self._tokens[self._at :]

    def sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = self._take()
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            token = self._peek()
            if token in ("*", "/"):
                self._take()
                factor = self._signed()
                value = value * factor if token == "*" else value / factor
            elif token in ("(", "[", r"\frac", r"\sqrt") or (token == "{" and self._after_bracket):
                value *= self._power()
            else:
                return value

    def _signed(self) -> Fraction:
        sign = 1
        while self._peek() in ("+", "-"):  # no recursion: there may be thousands
            sign = sign if self._take() == "+" else -sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if self._peek() == "^":
            self._take()
            base = _powered(base, self._exponent())
        while self._peek() == "%":
            self._take()
            base /= 100
        return base

    def _exponent(self) -> Fraction:
        return self._signed() if self._peek() in ("+", "-") else self._atom()

    @property
    def _after_bracket(self) -> bool:
        return self._tokens[self._at - 1] in (")", "]", "}")

    def _atom(self) -> Fraction:
        token = self._take()
        if token == r"\frac":
            above, below = self._group(), self._group()
            return above / below
        if token == r"\sqrt":
            if self._peek() == "[":
                raise _NotExactError("a root of another degree")
            return _root(self._group())
        if token in _PAIRS:
            value = self.sum()
            self._expect(_PAIRS[token])
            return value
        value = _literal(token)
        if self._peek() == r"\frac" and value.denominator == 1 and token.isdigit():
            self._take()  # a mixed number
            above, below = self._group(), self._group()
            return value + above / below
        return value

    def _group(self) -> Fraction:
        self._expect("{")
        value = self.sum()
        self._expect("}")
        return value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise MalformedError(f"{found!r} where {token!r} has to be")


_PAIRS = {"(": ")", "[": "]", "{": "}"}


def _literal(token: str) -> Fraction:
    digits = token.replace(",", "")
    if not digits or not digits.replace(".", "").isdigit():
        raise MalformedError(f"{token!r} where a number has to be")
    if len(digits) > _MAX_DIGITS:
        raise _NotExactError("too long")
    return Fraction(digits.removesuffix("."))


def _powered(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _NotExactError("a root")
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if bits * abs(exponent.numerator) > _MAX_BITS:
        raise _NotExactError("too large")
    return base**exponent.numerator


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise _NotExactError("not real")
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if above * above != value.numerator or below * below != value.denominator:
        raise _NotExactError("not rational")
    return Fraction(above, below)
