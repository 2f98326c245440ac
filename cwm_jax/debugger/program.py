"""A program's lines and control flow: at which line a frame stands that names only its text."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import dis
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cwm_jax.trace.format import check_plain
from cwm_jax.trace.frames import TraceEvent, TraceFrame
from cwm_jax.trace.tracer import (
    PARSE_ERRORS,
    TraceError,
    find_entry,
    marked_line,
    source_lines,
    unmarked,
)

_SUSPENDABLE = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_NEVER_FALL_THROUGH = {"RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS"}


class Place(NamedTuple):
    """Where a scope may stand: the number of its code (None: not known) and a 1-based line."""

    code: int | None
    line: int


Places = frozenset[Place]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Code:
    name: str
    first_line: int  # of its call event: the first decorator's, if it has one
    parameters: frozenset[str]
    suspends: bool
    entered: frozenset[int]  # lines that may come first
    following: Mapping[int, frozenset[int]]  # lines that may come after a line

    @property
    def lines(self) -> frozenset[int]:
        return frozenset(self.following)


class Program:
    """A context: source whose entry line carries the start marker.

    The lines that may follow one another are those of this interpreter's byte code, so a frame's
    text is looked up where the scope can be, not where it stands first in the file.

    Attributes:
        context: the source with the marker.
        lines: physical lines with their ends, without the marker.
        marked: 1-based number of the marked line.
        entry_parameters: of the marked function, None where the module itself is the entry.

    Raises:
        TraceError: no line is marked, or several, the source does not parse or compile, or the
            marked function is where nothing can come.
        TraceFormatError: it spells a special token.
    """

    def __init__(self, context: str) -> None:
        check_plain(context, "program")
        entry = find_entry(context)
        self.context = context
        self.lines = tuple(unmarked(line) for line in source_lines(context))
        self.marked = marked_line(context)
        codes = _compiled(context)
        self._codes = [_code_of(code, self.marked) for code in codes]
        self._module = 0
        self.entry = self._module if entry is None else self._find(entry)
        self._entry_is_closed = entry is None or any(
            entry == (const.co_firstlineno, const.co_name) and not const.co_freevars
            for const in codes[0].co_consts
            if isinstance(const, types.CodeType)
        )

    @property
    def entry_frame(self) -> TraceFrame | None:
        """The call of the entry if it is known without running: it has no locals; else None."""
        code = self._codes[self.entry]
        if code.parameters or not self._entry_is_closed:
            return None
        line = self.marked if self.entry == self._module else code.first_line
        return TraceFrame(TraceEvent.CALL, self.lines[line - 1], {}, lineno=line)

    @property
    def entry_suspends(self) -> bool:
        """Whether the entry is a generator or a coroutine: its return need not be its end."""
        return self._codes[self.entry].suspends

    def name(self, places: Iterable[Place]) -> str:
        """Of the function, or ``?``."""
        names = {None if p.code is None else self._codes[p.code].name for p in places}
        return (names.pop() or "?") if len(names) == 1 else "?"

    def suspends(self, place: Place) -> bool:
        """Whether a scope that returns there may go on: a generator's or a coroutine's."""
        return place.code is not None and self._codes[place.code].suspends

    def resumes(self, places: Places, suspended: Places) -> bool:
        """Whether a call at one of these places may be of a generator that goes on."""
        return bool(places & suspended) or any(
            self.suspends(p) and p.line != self._codes[p.code or 0].first_line for p in places
        )

    def starts_at(self, line: int) -> bool:
        """Whether a function's call event has this line."""
        return any(code.first_line == line for code in self._codes[1:])

    def entry_places(self) -> Places:
        """Of the entry's call."""
        code = self._codes[self.entry]
        is_module = self.entry == self._module
        return frozenset({Place(self.entry, self.marked if is_module else code.first_line)})

    def called(self, frame: TraceFrame, suspended: Places) -> Places:
        """Where a call may be.

        Args:
            frame: the call.
            suspended: places of generators that were left by a ``yield``.
        """
        text, names = frame.source_line, {*frame.local_vars}
        found = {
            Place(number, code.first_line)
            for number, code in enumerate(self._codes)
            if self._is(code.first_line, text)
        }
        fitting = {p for p in found if self._codes[p.code or 0].parameters <= names}
        resumed = {p for p in suspended if self._is(p.line, text)} or {
            Place(number, line)
            for number, code in enumerate(self._codes)
            if code.suspends
            for line in code.lines
            if self._is(line, text)
        }
        return frozenset(fitting | resumed or found) or self._anywhere(text)

    def reached(self, frame: TraceFrame, before: Places, *, called: bool) -> Places:
        """Where a frame of a scope may be that stood at the places ``before``.

        Args:
            frame: a line, return or exception.
            before: of the frame before it in its scope.
            called: whether that one is the scope's call.
        """
        text = frame.source_line
        if frame.event is not TraceEvent.LINE:
            here = frozenset(place for place in before if self._is(place.line, text))
            if here:
                return here
        next_ones = {
            Place(place.code, line)
            for place in before
            if place.code is not None
            for line in self._following(place, called=called)
            if self._is(line, text)
        }
        if next_ones:
            return frozenset(next_ones)
        same_code = {
            Place(place.code, line)
            for place in before
            if place.code is not None
            for line in self._codes[place.code].lines
            if self._is(line, text)
        }
        return frozenset(same_code) or self._anywhere(text)

    def _following(self, place: Place, *, called: bool) -> Iterator[int]:
        code = self._codes[place.code or 0]
        is_first = called and (place.line == code.first_line or place.code == self._module)
        if is_first:
            yield from code.entered
        if not is_first or code.suspends:
            yield from code.following.get(place.line, ())

    def _anywhere(self, text: str) -> Places:
        return frozenset(Place(None, n) for n, line in enumerate(self.lines, 1) if line == text)

    def _is(self, line: int, text: str) -> bool:
        return 1 <= line <= len(self.lines) and self.lines[line - 1] == text

    def _find(self, entry: tuple[int, str]) -> int:
        for number, code in enumerate(self._codes):
            if (code.first_line, code.name) == entry:
                return number
        raise TraceError(
            "not-entered",
            f"the marked function {entry[1]!r} at line {entry[0]} has no code: nothing can come "
            "where it stands; expected a line that the program can reach: mark another",
        )


def _compiled(context: str) -> list[types.CodeType]:
    """The module's code and all that are nested in it.

    Raises:
        TraceError: what parses need not compile: ``return`` outside of a function, deep nesting.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the program's own making, as "\d" in a string
            module = compile(context, "main.py", "exec", dont_inherit=True)
        return [*_with_nested(module)]
    except PARSE_ERRORS as error:
        raise TraceError(
            "syntax",
            f"the program does not compile: {type(error).__name__}: {error}; expected one that "
            "Python would run: mend it and begin again",
        ) from None


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _with_nested(const)


def _code_of(code: types.CodeType, marked: int) -> _Code:
    flow = _Flow(code)
    num_parameters = code.co_argcount + code.co_kwonlyargcount
    num_parameters += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    return _Code(
        name=code.co_name,
        first_line=marked if code.co_name == "<module>" else code.co_firstlineno,
        parameters=frozenset(code.co_varnames[:num_parameters]),
        suspends=bool(code.co_flags & _SUSPENDABLE),
        entered=flow.entered(),
        following={line: flow.following(line) for line in flow.lines},
    )


class _Flow:
    """Which lines of a code object can follow which, by its instructions' edges."""

    def __init__(self, code: types.CodeType) -> None:
        byte_code = dis.Bytecode(code)
        self._instructions = [*byte_code]
        self._numbers = {i.offset: n for n, i in enumerate(self._instructions)}
        entries = byte_code.exception_entries  # pyright: ignore[reportAttributeAccessIssue]
        # CPython's table: each instruction has one handler at most, the innermost.
        self._handlers = sorted((entry.start, entry.end, entry.target) for entry in entries)
        self._line_of = [i.positions.lineno if i.positions else None for i in self._instructions]
        self._of_line: dict[int, list[int]] = collections.defaultdict(list)
        for number, line in enumerate(self._line_of):
            if line:
                self._of_line[line].append(number)
        self._edges = [self._successors(n) for n in range(len(self._instructions))]

    @property
    def lines(self) -> Iterable[int]:
        return self._of_line.keys()

    def entered(self) -> frozenset[int]:
        for number, instruction in enumerate(self._instructions):
            if instruction.opname == "RESUME":
                return self._lines_from([number + 1], None)
        return frozenset()

    def following(self, line: int) -> frozenset[int]:
        starts = {e for n in self._of_line[line] for e in self._edges[n]}
        return self._lines_from(sorted(starts), line)

    def _lines_from(self, starts: Iterable[int], line: int | None) -> frozenset[int]:
        """Lines met first on the ways on; ``line`` itself where a jump leads back to it."""
        found, seen, pending = set(), set(), [*starts]
        firsts = self._firsts_of(line)
        while pending:
            number = pending.pop()
            if number in seen or number >= len(self._instructions):
                continue
            seen.add(number)
            at = self._line_of[number]
            if at and (at != line or number in firsts):
                found.add(at)
            if not at or at == line:
                pending += self._edges[number]
        return frozenset(found)

    def _firsts_of(self, line: int | None) -> set[int]:
        """Instructions of a line that a jump backwards from the line itself, or another, meets."""
        if line is None:
            return set()
        of_line = {*self._of_line[line]}
        return {e for n in of_line for e in self._edges[n] if e in of_line and e <= n}

    def _successors(self, number: int) -> list[int]:
        instruction = self._instructions[number]
        name, successors = instruction.opname, []
        if instruction.opcode in _JUMPS:
            target = self._numbers.get(instruction.argval)
            successors += [] if target is None else [target]
        unconditional = name.startswith("JUMP_") and "IF" not in name
        if name not in _NEVER_FALL_THROUGH and not unconditional:
            successors.append(number + 1)
        if (handler := self._handler(instruction.offset)) is not None:
            successors.append(handler)
        return [n for n in successors if n < len(self._instructions)]

    def _handler(self, offset: int) -> int | None:
        """Where an exception at that offset goes on; None: it leaves the code."""
        at = bisect.bisect_right(self._handlers, offset, key=lambda handler: handler[0]) - 1
        if at < 0 or offset >= self._handlers[at][1]:
            return None
        return self._numbers.get(self._handlers[at][2])
