"""What is known of a C expression: its type, and of an int the bounds of its value."""

from __future__ import annotations

import dataclasses

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
WIDE = "unsigned long long"
Kind = str  # one of KINDS, as C writes it
KINDS = ("int", "unsigned", WIDE, "double")
SUFFIX = {"int": "", "unsigned": "u", WIDE: "ull", "double": ".0"}
BITS = {"unsigned": 32, WIDE: 64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """An expression.

    Attributes:
        text: in C.
        kind: its type.
        low: the least value, of an int.
        high: the greatest, of an int.
        atom: it needs no parentheses as an operand.
    """

    text: str
    kind: Kind
    low: int = INT_MIN
    high: int = INT_MAX
    atom: bool = False

    @property
    def is_literal(self) -> bool:
        """It is a number as such."""
        return self.text.lstrip("-")[0].isdigit() and " " not in self.text

    @property
    def operand(self) -> str:
        """The text as an operand."""
        return self.text if self.atom else f"({self.text})"


def constant(number: int, kind: Kind) -> Value:
    """A literal of that type; only an int's may be negative."""
    return Value(
        text=f"{number}{SUFFIX[kind]}", kind=kind, low=number, high=number, atom=number >= 0
    )


def fitted(value: Value, low: int, high: int) -> Value:
    """An int brought within bounds, ``low`` 0 or less and ``high`` more than 0."""
    assert value.kind == "int" and low <= 0 < high
    if low <= value.low and value.high <= high:
        return value
    if low == 0 or value.low >= 0:
        mask = (1 << ((high + 1).bit_length() - 1)) - 1
        return Value(text=f"{value.operand} & {mask}", kind="int", low=0, high=mask)
    bound = min(-low, high)
    return Value(text=f"{value.operand} % {bound + 1}", kind="int", low=-bound, high=bound)


def bounds_of_bits(*values: Value) -> tuple[int, int]:
    """Bounds of any ``&``, ``|`` and ``^`` of ints."""
    bits = max(max(v.high, ~v.low).bit_length() for v in values)
    return (-(1 << bits) if min(v.low for v in values) < 0 else 0), (1 << bits) - 1


def converted(value: Value, kind: Kind) -> Value:
    """A value as one of another type, with a cast that is defined for every value."""
    if value.kind == kind:
        return value
    if kind == "int":
        return _as_int(value)
    if value.kind == "double":  # only of a truth value: others may not fit
        return Value(text=f"{value.operand} > 0.0 ? {constant(1, kind).text} : "
                     f"{constant(0, kind).text}", kind=kind)  # fmt: skip
    return Value(text=f"({kind}){value.operand}", kind=kind)


def _as_int(value: Value) -> Value:
    if value.kind == "double":
        return Value(text=f"{value.operand} > 0.0", kind="int", low=0, high=1)
    shift = BITS[value.kind] - 16
    return Value(text=f"(int)({value.operand} >> {shift})", kind="int", low=0, high=(1 << 16) - 1)
