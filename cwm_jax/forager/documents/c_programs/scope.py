"""The names that a C function may use at a place, and what is known of them."""

from __future__ import annotations

import dataclasses
import random

from cwm_jax.forager.documents.c_programs.values import INT_MAX, INT_MIN, Kind, Value

BYTE = "unsigned char"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variable:
    """What holds one value: a variable, or a field of a struct by its whole name.

    Attributes:
        name: in C.
        kind: its type.
        low: the least value that it ever has, of an int.
        high: the greatest, of an int.
        fixed: it is not assigned to, as what a loop counts with.
    """

    name: str
    kind: Kind
    low: int = INT_MIN
    high: int = INT_MAX
    fixed: bool = False

    @property
    def value(self) -> Value:
        """What reading it gives."""
        return Value(text=self.name, kind=self.kind, low=self.low, high=self.high, atom=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """What holds many.

    Attributes:
        name: in C.
        element: its elements' type in C; a byte is read as an int.
        length: a power of two, or the name of the parameter that says how many there are.
        fixed: its elements are not assigned to.
    """

    name: str
    element: str
    length: int | str
    fixed: bool = False

    @property
    def kind(self) -> Kind:
        """The type that reading an element gives."""
        return "int" if self.element == BYTE else self.element

    @property
    def bounds(self) -> tuple[int, int]:
        """Of an element that is read."""
        return (0, 255) if self.element == BYTE else (INT_MIN, INT_MAX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function:
    """One that may be called: all of its parameters are single values."""

    name: str
    result: Kind
    parameters: tuple[Kind, ...]


@dataclasses.dataclass(kw_only=True)
class Scope:
    """What is known at a place.

    Attributes:
        draw: of all choices.
        variables: that have a value.
        arrays: all of whose elements have one.
        counters: of the loops around, name to the number or parameter that each stays below.
        functions: that are defined above.
        names: how many names of a letter have been given, in the whole function.
    """

    draw: random.Random
    variables: list[Variable] = dataclasses.field(default_factory=list)
    arrays: list[Array] = dataclasses.field(default_factory=list)
    counters: dict[str, int | str] = dataclasses.field(default_factory=dict)
    functions: list[Function] = dataclasses.field(default_factory=list)
    names: dict[str, int] = dataclasses.field(default_factory=dict)

    def inner(self) -> Scope:
        """A block's: what it adds is not seen outside."""
        return dataclasses.replace(
            self,
            variables=list(self.variables),
            arrays=list(self.arrays),
            counters=dict(self.counters),
        )

    def name(self, letters: str) -> str:
        """A name that is not in use, of one of the letters: ``x``, then ``x2``."""
        letter = self.draw.choice(letters)
        self.names[letter] = self.names.get(letter, 0) + 1
        number = self.names[letter]
        return letter if number == 1 else f"{letter}{number}"

    def of_kind(self, kind: Kind, *, assignable: bool = False) -> list[Variable]:
        """Variables of a type."""
        return [v for v in self.variables if v.kind == kind and not (assignable and v.fixed)]

    def index(self, array: Array) -> str | None:
        """An index of the array without effects, or None where none is known."""
        known = [
            name
            for name, below in self.counters.items()
            if below == array.length
            or (isinstance(below, int) and isinstance(array.length, int) and below < array.length)
        ]
        if known and (self.draw.random() < 0.8 or isinstance(array.length, str)):
            return self.draw.choice(known)
        if isinstance(array.length, str):
            return None
        whole = [v for v in self.variables if v.kind in ("int", "unsigned")]
        if whole and self.draw.random() < 0.7:  # -1 & 7 is 7, where ints are two's complement
            return f"{self.draw.choice(whole).name} & {array.length - 1}"
        return str(self.draw.randrange(array.length))
