"""The frames of a session, each with the scopes that are open at it: values, nothing changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from cwm_jax.debugger.program import Places, Program
from cwm_jax.trace.format import UNCHANGED, scope_locals
from cwm_jax.trace.frames import TraceEvent, TraceFrame

Origin = Literal["given", "predicted", "edited"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """A function that is being executed.

    Attributes:
        name: of the function; ``?`` where it is not known.
        places: where it may stand.
        local_vars: as last shown.
        called: whether no line of it has run yet.
    """

    name: str
    places: Places
    local_vars: Mapping[str, str]
    called: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One frame of a session.

    Attributes:
        frame: as parsed; ``lineno`` is set where its line is certain.
        token_ids: its text as the model wrote it, or as it was rendered; ends with the separator.
        origin: whether it is certain (``given``), from the model, or changed by the user.
        forced: the event that was asked for instead of predicted.
        problems: what is malformed or cannot be, in words.
        changed: names of locals that are new, or not as the scope showed them last.
        scopes: open at this frame, the innermost last; a return's own scope is still among them.
        resumes: whether it may be the call of a generator that goes on.
        suspended: places that generators were left at.
        known: what ``".."`` means in the next frame.
    """

    frame: TraceFrame
    token_ids: tuple[int, ...]
    origin: Origin
    forced: TraceEvent | None
    problems: tuple[str, ...]
    changed: frozenset[str]
    scopes: tuple[Scope, ...]
    resumes: bool
    suspended: Places
    known: Mapping[str, str] | None

    @property
    def open_scopes(self) -> tuple[Scope, ...]:
        """Those that the next frame finds."""
        return self.scopes[:-1] if self.frame.event is TraceEvent.RETURN else self.scopes

    @property
    def depth(self) -> int:
        """Number of scopes that the next frame finds; 0 after the entry's return."""
        return len(self.open_scopes)

    @property
    def lines(self) -> list[int]:
        """1-based lines at which the frame may be: one if it is certain, none if it is nowhere."""
        return sorted({place.line for place in self.scopes[-1].places})

    @property
    def local_vars(self) -> Mapping[str, str]:
        """Of the frame's scope; of a return or an exception, as last shown before it."""
        return self.scopes[-1].local_vars

    @property
    def unresolved(self) -> list[str]:
        """Locals that the model says are unchanged where nothing says from what."""
        return [name for name, value in self.local_vars.items() if value == UNCHANGED]


def make_step(
    program: Program,
    before: Step | None,
    frame: TraceFrame,
    *,
    token_ids: tuple[int, ...],
    origin: Origin = "predicted",
    forced: TraceEvent | None = None,
    problems: tuple[str, ...] = (),
) -> Step:
    """The step of a frame that follows ``before``; None: it is the entry's call."""
    scopes = before.open_scopes if before else ()
    suspended = before.suspended if before else frozenset()
    problems = (*problems, *_structural(program, before, frame))
    if frame.event is TraceEvent.CALL or not scopes:
        places = _called(program, before, frame, suspended)
        last: Mapping[str, str] = {}
        scopes = (*scopes, _scope(program, frame, places, {}))
    else:
        scope = scopes[-1]
        places = program.reached(frame, scope.places, called=scope.called)
        if _is_elsewhere(scope.places, places):
            text = frame.source_line.strip()
            problems = (*problems, f"{text!r} is no line of {scope.name}(), which is executing")
        last = scope.local_vars
        scopes = (*scopes[:-1], _scope(program, frame, places, last))
    if not places:
        problems = (*problems, f"{frame.source_line.strip()!r} is no line of the program")
    resumes = frame.event is TraceEvent.CALL and program.resumes(places, suspended)
    if frame.event is TraceEvent.CALL:
        suspended -= places
    elif frame.event is TraceEvent.RETURN:
        suspended |= {place for place in places if program.suspends(place)}
    lines = {place.line for place in places}
    return Step(
        frame=dataclasses.replace(frame, lineno=lines.pop() if len(lines) == 1 else None),
        token_ids=token_ids,
        origin=origin,
        forced=forced,
        problems=problems,
        changed=frozenset(k for k, v in frame.local_vars.items() if last.get(k) != v),
        scopes=scopes,
        resumes=resumes,
        suspended=suspended,
        known=scope_locals(frame, before.known if before else None),
    )


def _is_elsewhere(before: Places, places: Places) -> bool:
    """Whether a scope is where its code, which is known, has no such line."""
    known = all(place.code is not None for place in before) and bool(before)
    return known and bool(places) and all(place.code is None for place in places)


def _scope(program: Program, frame: TraceFrame, places: Places, last: Mapping[str, str]) -> Scope:
    return Scope(
        name=program.name(places),
        places=places,
        local_vars=frame.local_vars if frame.event.has_locals else last,
        called=frame.event is TraceEvent.CALL,
    )


def _called(program: Program, before: Step | None, frame: TraceFrame, suspended: Places) -> Places:
    entry = program.entry_places()
    if before is None and {program.lines[p.line - 1] for p in entry} == {frame.source_line}:
        return entry
    return program.called(frame, suspended)


def _structural(program: Program, before: Step | None, frame: TraceFrame) -> list[str]:
    """What cannot be in a trace, whatever the program."""
    if before is None:
        return [] if frame.event is TraceEvent.CALL else ["the first frame is no call"]
    if before.depth:
        return []
    resumed = frame.event is TraceEvent.CALL and program.entry_suspends
    return [] if resumed else ["a frame follows the return of the entry"]
