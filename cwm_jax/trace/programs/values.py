"""What generated programs deal in: levels, the bounds of values, expressions, variables."""

from __future__ import annotations

from dataclasses import dataclass

# How tightly an expression binds; a looser one is put in parentheses.
ATOM, PRODUCT, SUM, BITS, COMPARE, NOT, AND, OR, TERNARY = range(9)


@dataclass(frozen=True, slots=True)
class Level:
    """The size of programs of one difficulty; all are upper bounds that hold by construction.

    Attributes:
        statements: how many statements the body of ``f`` is asked for, from and to.
        nesting: blocks inside blocks.
        literal: the greatest number written as an argument.
        magnitude: the greatest absolute value of any int.
        string: characters of a string argument; any string has ``6 * string`` at most.
        items: items of an argument; any container has ``3 * items`` at most.
        events: events of ``sys.settrace`` from the call of ``main`` to its return.
        helpers: functions beside ``f``, from and to.
        depth: operators inside operators.
    """

    statements: tuple[int, int]
    nesting: int
    literal: int
    magnitude: int
    string: int
    items: int
    events: int
    helpers: tuple[int, int]
    depth: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The type of a value and what is known of it.

    Attributes:
        type: as one would annotate it.
        low: least int that it is or holds.
        high: greatest int that it is or holds.
        min_size: least number of characters or items.
        max_size: greatest number of characters or items.
        width: length of the longest string, or of the longest row, that it holds.
    """

    type: str
    low: int = 0
    high: int = 0
    min_size: int = 0
    max_size: int = 0
    width: int = 0

    def hull(self, other: Bounds) -> Bounds:
        """Bounds that hold for both."""
        return Bounds(
            self.type,
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.min_size, other.min_size),
            max(self.max_size, other.max_size),
            max(self.width, other.width),
        )

    def within(self, other: Bounds) -> bool:
        """Whether every value of these bounds is one of the others'."""
        return self.type == other.type and other.hull(self) == other


@dataclass(frozen=True, slots=True)
class Expression:
    """Source text of a value, its bounds and how tightly it binds."""

    text: str
    bounds: Bounds
    binding: int = ATOM

    def at(self, binding: int) -> str:
        """The text, in parentheses if it binds more loosely than its place allows."""
        return self.text if self.binding <= binding else f"({self.text})"


@dataclass(slots=True)
class Variable:
    """A local variable; ``empty`` while it is as it was created, an empty string or container.

    In the block that made it its bounds follow the program line by line. Deeper blocks may run any
    number of times, or not at all, so there ``bounds`` stay: ``base`` holds whatever was assigned,
    and the changes to come on top of it, however often and in whatever order they run, are paid
    from the slack between the two (``Scope.widen`` makes it).
    """

    name: str
    bounds: Bounds
    base: Bounds
    block: int
    times: int
    used: bool = False
    fixed: bool = False
    indexes: str = ""
    empty: bool = False
    slack_low: int = 0
    slack_high: int = 0
    slack_shrink: int = 0
    slack_grow: int = 0


@dataclass(frozen=True, slots=True)
class HelperFunction:
    """A function that the rest of the program may call, and the most events of one call."""

    name: str
    parameters: tuple[Bounds, ...]
    result: Bounds
    events: int
    kind: str
