"""Predicted frames beside those of a real run, and where they first part."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from cwm_jax.debugger.program import Program
from cwm_jax.debugger.steps import Step
from cwm_jax.trace.frames import TraceEvent, TraceFrame
from cwm_jax.trace.tracer import Trace, TraceError, TraceLimits, Tracer

_LIMITS = TraceLimits(cpu_s=5.0, wall_s=10.0)  # assumed: a person waits


class Verdict(enum.Enum):
    """Of a predicted frame."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"  # there is no frame of the real run to compare it with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """One predicted frame and the real one at its place.

    Attributes:
        verdict: whether they agree.
        true: of the real run; None where there is none, or its place is not known.
        wrong: parts that differ: ``event``, ``line``, ``value``, ``locals``.
        wrong_locals: names of those that differ, are missing, or should not be there.
        is_first: whether this is the first difference.
        why_unknown: in words; empty unless the verdict is UNKNOWN.
    """

    verdict: Verdict
    true: TraceFrame | None = None
    wrong: tuple[str, ...] = ()
    wrong_locals: tuple[str, ...] = ()
    is_first: bool = False
    why_unknown: str = ""


def run_for_comparison(program: Program, tracer: Tracer | None = None) -> Trace:
    """The real trace of a program, from the sandbox; maybe cut by a limit.

    Args:
        program: runs there.
        tracer: whose sandbox to use; None starts one and ends it.

    Raises:
        ValueError: it has no trace; in words.
        SandboxError: no sandbox can be had.
    """
    try:
        if tracer is not None:
            return tracer.trace(program.context)
        with Tracer(_LIMITS) as own:
            return own.trace(program.context)
    except TraceError as error:
        raise ValueError(f"nothing to compare with: {error}") from error


def compare(steps: Sequence[Step], trace: Trace) -> list[Compared]:
    """Sets each step beside the frame of the real run at its place.

    A return that was asked for right after its call stands beside the real return of that call.
    Once an event or a line differs the places are not known any more, nor after an edit that is
    not the truth itself.
    """
    true, compared = trace.frames, []
    at: int | None = 0
    lost = ""
    has_differed = False
    for number, step in enumerate(steps):
        if number and at is not None:
            jumped = step.forced is TraceEvent.RETURN
            at = _return_of(true, at) if jumped else at + 1
        if at is not None and at >= len(true):
            at, lost = None, "the real run has ended" if trace.finished else trace.message
        # An edit may also mend what the model got wrong.
        if at is not None and step.origin == "edited" and compare_frames(step, true[at]).wrong:
            at, lost = None, f"frame {number} was edited"
        if at is None:
            compared.append(Compared(verdict=Verdict.UNKNOWN, why_unknown=lost))
            continue
        one = compare_frames(step, true[at])
        is_first = bool(one.wrong) and not has_differed
        compared.append(dataclasses.replace(one, is_first=is_first))
        has_differed = has_differed or bool(one.wrong)
        if {"event", "line"} & {*one.wrong}:
            at, lost = None, f"frame {number} went another way than the real run"
    return compared


def first_difference(compared: Sequence[Compared]) -> int | None:
    """Its number; None if no frame differs."""
    return next((number for number, one in enumerate(compared) if one.is_first), None)


def compare_frames(step: Step, true: TraceFrame) -> Compared:
    """A predicted frame beside the real one."""
    frame, wrong, names = step.frame, [], []
    if frame.event is not true.event:
        wrong.append("event")
    # By its text: after equal frames, equal texts stand at one place as far as can be told.
    if frame.source_line != true.source_line:
        wrong.append("line")
    if frame.event is true.event and frame.arg != true.arg:
        wrong.append("value")
    if frame.event is true.event and true.event.has_locals:
        ours, theirs = frame.local_vars, true.local_vars
        names = [n for n in dict.fromkeys([*theirs, *ours]) if ours.get(n) != theirs.get(n)]
        wrong += ["locals"] if names else []
    return Compared(
        verdict=Verdict.DIFFERENT if wrong else Verdict.SAME,
        true=true,
        wrong=tuple(wrong),
        wrong_locals=tuple(names),
    )


def _return_of(frames: Sequence[TraceFrame], call: int) -> int:
    """Number of the return of the call at a number; past the end if it does not come."""
    depth = 0
    for number in range(call, len(frames)):
        event = frames[number].event
        depth += (event is TraceEvent.CALL) - (event is TraceEvent.RETURN)
        if not depth:
            return number
    return len(frames)
