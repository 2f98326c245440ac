"""Expressions in C without effects and without undefined behaviour."""

from __future__ import annotations

from cwm_jax.forager.documents.c_programs.scope import Array, Scope
from cwm_jax.forager.documents.c_programs.values import (
    BITS,
    INT_MAX,
    INT_MIN,
    KINDS,
    SUFFIX,
    Kind,
    Value,
    bounds_of_bits,
    constant,
    converted,
    fitted,
)

_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_TRIES = 4  # assumed: of an operand that is worth the operation
_SMALL = 1000  # operands of what would not fit are brought below it


class Expressions:
    """Draws expressions of what a scope has."""

    def __init__(self, scope: Scope) -> None:
        self._scope, self._draw = scope, scope.draw

    def value(self, kind: Kind, depth: int) -> Value:
        """An expression of a type, of at most that depth."""
        if depth <= 0 or self._draw.random() < 0.15:
            return self._leaf(kind)
        roll = self._draw.random()
        if roll < 0.08:
            return self._choice(kind, depth)
        if roll < 0.16:
            other = self._draw.choice([k for k in KINDS if k != kind])
            if self._scope.of_kind(other):
                return converted(self.value(other, depth - 1), kind)
        if roll < 0.26 and (call := self._call(kind, depth)):
            return call
        if kind == "int":
            return self._int(depth)
        return self._real(depth) if kind == "double" else self._unsigned(kind, depth)

    def within(self, low: int, high: int, depth: int) -> Value:
        """An int within bounds, ``low`` 0 or less and ``high`` more than 0."""
        return fitted(self.value("int", depth), low, high)

    def condition(self, depth: int) -> Value:
        """An int that is 0 or 1, of at least one comparison."""
        if depth > 1 and self._draw.random() < 0.3:
            sign = self._draw.choice(("&&", "||"))
            a, b = self.condition(depth - 1), self.condition(depth - 1)
            return _truth(f"{a.operand} {sign} {b.operand}")
        known = [kind for kind in KINDS if self._scope.of_kind(kind)] or ["int"]
        kind = self._draw.choice(known)
        if kind != "double" and self._draw.random() < 0.2:
            bit = constant(1 << self._draw.randrange(6), kind)
            return _truth(f"({self.value(kind, 1).operand} & {bit.text}) != {_zero(kind)}")
        a = self.value(kind, depth - 1)
        b = self._beside(a, 0)
        sign = "<" if kind == "double" else self._draw.choice(_COMPARISONS)
        return _truth(f"{a.operand} {sign} {b.operand}")

    def element(self, array: Array) -> Value | None:
        """An element that may be read or assigned to, or None where no index is known."""
        index = self._scope.index(array)
        if index is None:
            return None
        low, high = array.bounds
        return Value(text=f"{array.name}[{index}]", kind=array.kind, low=low, high=high, atom=True)

    def _beside(self, a: Value, depth: int) -> Value:
        """An operand beside another, which is not the same, and of two one is no literal."""
        for _ in range(_TRIES):
            b = self.value(a.kind, depth)
            if a.text != b.text and not (a.is_literal and b.is_literal):
                return b
        variables = [v.value for v in self._scope.of_kind(a.kind)]
        return (
            self._draw.choice(variables) if a.is_literal and variables else self._constant(a.kind)
        )

    def _leaf(self, kind: Kind) -> Value:
        variables = self._scope.of_kind(kind)
        arrays = [array for array in self._scope.arrays if array.kind == kind]
        if arrays and self._draw.random() < 0.4:
            element = self.element(self._draw.choice(arrays))
            if element is not None:
                return element
        if variables and self._draw.random() < 0.75:
            return self._draw.choice(variables).value
        return self._constant(kind)

    def _constant(self, kind: Kind) -> Value:
        number = self._draw.choice((1, 2, 3, 5, 7, 8, 10, 16, 31, 42, 100, 255, 1000))
        if kind == "int" and self._draw.random() < 0.2:
            number = -number
        if kind in BITS and self._draw.random() < 0.3:
            number = self._draw.getrandbits(BITS[kind])
            text = f"{number:#x}{SUFFIX[kind]}"
            return Value(text=text, kind=kind, atom=True)
        return constant(number, kind)

    def _choice(self, kind: Kind, depth: int) -> Value:
        test = self.condition(1)
        a = self.value(kind, depth - 1)
        b = self._beside(a, depth - 1)
        text = f"{test.operand} ? {a.operand} : {b.operand}"
        return Value(text=text, kind=kind, low=min(a.low, b.low), high=max(a.high, b.high))

    def _call(self, kind: Kind, depth: int) -> Value | None:
        known = [function for function in self._scope.functions if function.result == kind]
        if not known:
            return None
        function = self._draw.choice(known)
        arguments = [self.value(parameter, depth - 1).text for parameter in function.parameters]
        return Value(text=f"{function.name}({', '.join(arguments)})", kind=kind, atom=True)

    def _int(self, depth: int) -> Value:
        write = self._draw.choice(
            (self._sum, self._sum, self._product, self._quotient, self._bits, self._shift)
        )
        return write(self.value("int", depth - 1), depth)

    def _sum(self, a: Value, depth: int) -> Value:
        b = self._beside(a, depth - 1)
        if self._draw.random() < 0.5:
            low, high = a.low + b.low, a.high + b.high
            if low < INT_MIN or high > INT_MAX:
                a, b = _small(a), _small(b)
            text = f"{a.operand} + {b.operand}"
            return Value(text=text, kind="int", low=a.low + b.low, high=a.high + b.high)
        if a.low - b.high < INT_MIN or a.high - b.low > INT_MAX:
            a, b = _small(a), _small(b)
        text = f"{a.operand} - {b.operand}"
        return Value(text=text, kind="int", low=a.low - b.high, high=a.high - b.low)

    def _product(self, a: Value, depth: int) -> Value:
        b = self._beside(a, depth - 1)
        if not all(INT_MIN <= corner <= INT_MAX for corner in _corners(a, b)):
            a, b = _small(a), _small(b)
        corners = _corners(a, b)
        text = f"{a.operand} * {b.operand}"
        return Value(text=text, kind="int", low=min(corners), high=max(corners))

    def _quotient(self, a: Value, depth: int) -> Value:
        """By what is at least 1, so that it is never 0 and never -1."""
        if self._draw.random() < 0.5:
            by, most = str(divisor := self._draw.randrange(2, 20)), divisor
        else:
            by, most = f"({self.within(0, 15, depth - 1).operand} + 1)", 16
        if self._draw.random() < 0.5:
            text = f"{a.operand} / {by}"
            return Value(text=text, kind="int", low=min(a.low, 0), high=max(a.high, 0))
        low = 1 - most if a.low < 0 else 0
        return Value(text=f"{a.operand} % {by}", kind="int", low=low, high=most - 1)

    def _bits(self, a: Value, depth: int) -> Value:
        roll = self._draw.random()
        if roll < 0.15:
            return Value(text=f"~{a.operand}", kind="int", low=~a.high, high=~a.low)
        if roll < 0.5:
            mask = (1 << self._draw.randrange(1, 12)) - 1
            return Value(text=f"{a.operand} & {mask}", kind="int", low=0, high=mask)
        b = self._beside(a, depth - 1)
        low, high = bounds_of_bits(a, b)
        text = f"{a.operand} {self._draw.choice('|^&')} {b.operand}"
        return Value(text=text, kind="int", low=low, high=high)

    def _shift(self, a: Value, depth: int) -> Value:
        """Of what is not negative, and to the left of what leaves room."""
        by = self._draw.randrange(1, 8)
        if self._draw.random() < 0.5:
            a = fitted(a, 0, 4095)
            text = f"{a.operand} << {by}"
            return Value(text=text, kind="int", low=a.low << by, high=a.high << by)
        a = a if a.low >= 0 else fitted(a, 0, INT_MAX)
        return Value(text=f"{a.operand} >> {by}", kind="int", low=a.low >> by, high=a.high >> by)

    def _unsigned(self, kind: Kind, depth: int) -> Value:
        """Whatever does not fit is cut off, as the type defines it."""
        a, one = self.value(kind, depth - 1), constant(1, kind)
        b = self._beside(a, depth - 1)
        by = self._draw.randrange(1, BITS[kind])
        text = self._draw.choice(
            (
                *(f"{a.operand} {sign} {b.operand}" for sign in "+-*&|^"),
                f"{a.operand} << {by}",
                f"{a.operand} >> {by}",
                f"{a.operand} >> ({b.operand} & {BITS[kind] - 1}{SUFFIX[kind]})",
                f"({a.operand} << {by}) | ({a.operand} >> {BITS[kind] - by})",
                f"{a.operand} {self._draw.choice('/%')} ({b.operand} | {one.text})",
                f"~{a.operand}",
            )
        )
        return Value(text=text, kind=kind)

    def _real(self, depth: int) -> Value:
        a = self.value("double", depth - 1)
        b = self._beside(a, depth - 1)
        if self._draw.random() < 0.2:
            return Value(text=f"{a.operand} / {self._constant('double').text}", kind="double")
        text = f"{a.operand} {self._draw.choice('+-*')} {b.operand}"
        return Value(text=text, kind="double")


def _truth(text: str) -> Value:
    return Value(text=text, kind="int", low=0, high=1)


def _zero(kind: Kind) -> str:
    return constant(0, kind).text


def _small(value: Value) -> Value:
    return fitted(value, -_SMALL, _SMALL)


def _corners(a: Value, b: Value) -> tuple[int, ...]:
    return tuple(x * y for x in (a.low, a.high) for y in (b.low, b.high))
