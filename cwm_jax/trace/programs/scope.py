"""What is known of a generated program while it is written: types, ranges, names, events left.

Nothing is executed to learn it. Every value has ``Bounds`` that hold wherever it is read, and
every line is charged for the trace events that it can cause at most, so a program inside the
bounds of its level is inside them when it runs, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from cwm_jax.trace.programs.values import Bounds, Expression, HelperFunction, Level, Variable


class Unfit(Exception):  # noqa: N818 (no error: it asks for another construct)
    """A construct does not fit at this place of the program; its caller tries another."""


Maker = Callable[["Scope", int], Expression]


@dataclass(slots=True)
class Scope:
    """One function being written.

    Attributes:
        rng: the only source of choices.
        level: the limits.
        kinds: what may be used.
        left: events that the function may still cause.
        makers: constructs that give a value, by its type, and how often each is tried.
        times: how often the current block runs at most.
        locked: containers being iterated over, and aliases: nothing changes them in place.
        loop: the innermost loop, "for" or "while".
        quiet: in an expression's inner scope, where nothing is assigned.
        returns_early: whether a return may come before the last line.
    """

    rng: Random
    level: Level
    kinds: frozenset[str]
    left: int
    makers: Mapping[str, tuple[Sequence[Maker], Sequence[int]]]
    helpers: Sequence[HelperFunction] = ()
    reserved: set[str] = field(default_factory=set)
    indent: int = 1
    times: int = 1
    block: int = 0
    blocks: int = 0
    nesting: int = 0
    loop: str | None = None
    quiet: bool = False
    returns_early: bool = False
    lines: list[str] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    locked: frozenset[str] = frozenset()

    # -- text and events ---------------------------------------------------------------------------

    def charge(self, events: int) -> None:
        """Take the events of something that runs in the current block.

        Raises:
            Unfit: so many are not left.
        """
        self.left -= events * self.times
        if self.left < 0:
            raise Unfit

    def emit(self, text: str, *, events: int = 1) -> None:
        """Append a line of the current block."""
        self.charge(events)
        self.lines.append("    " * self.indent + text)

    def save(self) -> tuple:
        """The state to go back to when what is tried next turns out ``Unfit``."""
        variables = [
            (
                v,
                v.bounds,
                v.base,
                v.used,
                v.empty,
                v.slack_low,
                v.slack_high,
                v.slack_shrink,
                v.slack_grow,
            )
            for v in self.variables.values()
        ]
        place = (self.indent, self.times, self.block, self.nesting, self.loop)
        return len(self.lines), self.left, self.locked, place, variables

    def restore(self, saved: tuple) -> None:
        """Undo everything since ``saved``, in the variables themselves: callers hold them."""
        lines, self.left, self.locked, place, variables = saved
        del self.lines[lines:]
        self.indent, self.times, self.block, self.nesting, self.loop = place
        self.variables = {variable.name: variable for variable, *_ in variables}
        for v, bounds, base, used, empty, low, high, shrink, grow in variables:
            v.bounds, v.base, v.used, v.empty = bounds, base, used, empty
            v.slack_low, v.slack_high, v.slack_shrink, v.slack_grow = low, high, shrink, grow

    @contextlib.contextmanager
    def indented(self, *, times: int = 1, loop: str | None = None) -> Iterator[None]:
        """A block that runs up to ``times`` times for each run of the current one."""
        if self.nesting >= self.level.nesting:
            raise Unfit
        state = (self.times, self.block, self.loop)
        self.blocks += 1
        self.indent, self.nesting = self.indent + 1, self.nesting + 1
        self.times, self.block, self.loop = self.times * times, self.blocks, loop or self.loop
        yield
        made = [name for name, v in self.variables.items() if v.block == self.block]
        for name in made:  # they may be unbound behind the block
            del self.variables[name]
        self.indent, self.nesting = self.indent - 1, self.nesting - 1
        self.times, self.block, self.loop = state

    @contextlib.contextmanager
    def repeated(self, times: int, events: int) -> Iterator[None]:
        """An inner scope of an expression (comprehension, lambda) with its variables."""
        if self.quiet:
            raise Unfit
        self.charge(events)
        before, names = self.times, set(self.variables)
        self.times, self.quiet = before * max(times, 1), True
        try:
            yield
        finally:
            for name in set(self.variables) - names:
                del self.variables[name]
            self.times, self.quiet = before, False

    # -- names and variables -----------------------------------------------------------------------

    def fresh_name(self, names: Sequence[str]) -> str:
        """One of the names that is not taken, if need be with a number."""
        free = [n for n in names if n not in self.variables and n not in self.reserved]
        if free:
            return self.rng.choice(free)
        stem = self.rng.choice(names)
        return next(
            name
            for number in range(2, 1000)
            if (name := f"{stem}{number}") not in self.variables and name not in self.reserved
        )

    def declare(
        self, name: str, bounds: Bounds, *, fixed: bool = False, indexes: str = ""
    ) -> Variable:
        """A new variable of the current block; it may be an index of a sequence that stays."""
        self.check(bounds)
        variable = Variable(name, bounds, bounds, self.block, self.times)
        variable.fixed, variable.indexes = fixed, indexes
        self.variables[name] = variable
        return variable

    def candidates(self, type_name: str, *, nonempty: bool = False) -> list[Variable]:
        """Variables of the type with something to read: not one known to be empty still."""
        return [
            v
            for v in self.variables.values()
            if v.bounds.type == type_name
            and (v.bounds.min_size > 0 or not nonempty)
            and not (v.empty and v.block == self.block)
        ]

    def read(self, type_name: str, *, nonempty: bool = False) -> Expression:
        """A variable of the type, sooner one that nothing has read yet.

        Raises:
            Unfit: there is none.
        """
        found = self.candidates(type_name, nonempty=nonempty)
        if not found:
            raise Unfit
        weights = [1 if v.used else 5 for v in found]
        variable = self.rng.choices(found, weights)[0]
        variable.used = True
        return Expression(variable.name, variable.bounds)

    def changeable(self, type_name: str) -> Variable:
        """A variable that may be assigned to or changed in place.

        Raises:
            Unfit: there is none.
        """
        found = [v for v in self.candidates(type_name) if not v.fixed and v.name not in self.locked]
        if self.quiet or not found:
            raise Unfit
        return self.rng.choice(found)

    # -- changes -----------------------------------------------------------------------------------

    def check(self, bounds: Bounds) -> Bounds:
        """The bounds, if a value of this size may occur in a program of this level.

        Raises:
            Unfit: it may not.
        """
        level = self.level
        most = 6 * level.string if bounds.type == "str" else 3 * level.items
        if (
            max(-bounds.low, bounds.high) > level.magnitude
            or bounds.min_size < 0
            or bounds.max_size > most
            or bounds.width > 6 * level.string
        ):
            raise Unfit
        return bounds

    def known(self, variable: Variable) -> Bounds:
        """What a change of the variable in the current block starts from."""
        return variable.bounds if variable.block == self.block else variable.base

    def assign(self, variable: Variable, bounds: Bounds) -> None:
        """The variable is bound to a value of these bounds."""
        if variable.block == self.block:
            self._settle(variable, bounds)
        else:
            self._admit(variable, bounds)
        variable.used = variable.empty = False

    def change(
        self,
        variable: Variable,
        *,
        low: int = 0,
        high: int = 0,
        grow: int = 0,
        shrink: int = 0,
        item: Bounds | None = None,
    ) -> None:
        """The value changes by so much at most; ``item`` (bounds of ints, width) joins it."""
        bounds, times = variable.bounds, self.times // variable.times
        if variable.block == self.block:
            joined = bounds if item is None else bounds.hull(item)
            settled = replace(
                joined,
                low=joined.low + min(low, 0),
                high=joined.high + max(high, 0),
                min_size=bounds.min_size - shrink if shrink else bounds.min_size + grow,
                max_size=bounds.max_size + grow,
            )
            if bounds.type in ("dict[str, int]", "set[int]"):  # what is added may be there already
                settled = replace(settled, min_size=max(bounds.min_size - shrink, 0))
            self._settle(variable, settled)
        else:
            if item is not None:
                sizes = (variable.base.min_size, variable.base.max_size)
                self._admit(variable, replace(item, min_size=sizes[0], max_size=sizes[1]))
            variable.slack_low += times * min(low, 0)
            variable.slack_high -= times * max(high, 0)
            variable.slack_grow -= times * grow
            variable.slack_shrink -= times * shrink
            self._check_slack(variable)
        variable.used = variable.empty = False

    def widen(self, variable: Variable) -> None:
        """Room for changes in the blocks that follow; only its own block can give it."""
        if variable.block != self.block or variable.fixed or variable.name in self.locked:
            return
        level, b = self.level, variable.bounds
        down, up = self.rng.choice(((0, 2), (1, 1))) if b.low >= 0 else (1, 1)
        span = level.magnitude // 5
        low = max(b.low - down * span, -level.magnitude)
        high = min(b.high + up * span, level.magnitude)
        grow = 2 * level.string if b.type == "str" else level.items + level.items // 2
        if "int" not in b.type:
            low = high = 0
        if b.type == "int":
            grow = 0
        most = 6 * level.string if b.type == "str" else 3 * level.items
        size = max(b.max_size, min(b.max_size + grow, most))
        width = max(b.width, 2 * level.string) if "[" in b.type and "str" in b.type else b.width
        wide = Bounds(b.type, min(low, b.low), max(high, b.high), 0, size, width)
        variable.bounds = wide
        variable.slack_low += b.low - wide.low
        variable.slack_high += wide.high - b.high
        variable.slack_shrink += b.min_size
        variable.slack_grow += wide.max_size - b.max_size

    def _settle(self, variable: Variable, bounds: Bounds) -> None:
        variable.bounds = variable.base = self.check(bounds)
        variable.slack_low = variable.slack_high = 0
        variable.slack_grow = variable.slack_shrink = 0

    def _admit(self, variable: Variable, bounds: Bounds) -> None:
        """A value joins those that the variable may have; the changes still due come on top."""
        base = variable.base
        if bounds.width > variable.bounds.width:
            raise Unfit
        variable.base = base.hull(bounds)
        variable.slack_low -= max(base.low - bounds.low, 0)
        variable.slack_high -= max(bounds.high - base.high, 0)
        variable.slack_shrink -= max(base.min_size - bounds.min_size, 0)
        variable.slack_grow -= max(bounds.max_size - base.max_size, 0)
        self._check_slack(variable)

    @staticmethod
    def _check_slack(variable: Variable) -> None:
        slack = (variable.slack_low, variable.slack_high)
        if min(*slack, variable.slack_shrink, variable.slack_grow) < 0:
            raise Unfit
