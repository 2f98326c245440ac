"""Breakpoints on lines, with conditions on predicted values."""

from __future__ import annotations

import dataclasses

from cwm_jax.debugger.expressions import ExpressionError, check_expression, evaluate
from cwm_jax.debugger.program import Program
from cwm_jax.debugger.steps import Step
from cwm_jax.trace.frames import TraceEvent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Breakpoint:
    """Stops `continue` at a line.

    Attributes:
        line: 1-based.
        condition: an expression on the predicted locals; None: always.
        temporary: whether it is gone once it has stopped the run.
    """

    line: int
    condition: str | None = None
    temporary: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """A breakpoint that a step meets, and what is to be said of it."""

    breakpoint: Breakpoint
    note: str = ""


def check_breakpoint(program: Program, breakpoint: Breakpoint) -> None:
    """Raises ValueError: no such line, a blank one, or a condition that is no expression."""
    if not 1 <= breakpoint.line <= len(program.lines):
        raise ValueError(
            f"breakpoint at line {breakpoint.line}; expected 1 to {len(program.lines)}, the lines "
            "of the program: `list` shows them"
        )
    text = program.lines[breakpoint.line - 1].strip()
    if not text or text.startswith("#"):
        raise ValueError(
            f"breakpoint at line {breakpoint.line}, which is {'a comment' if text else 'blank'}; "
            "expected a line that runs: `list` shows them"
        )
    if breakpoint.condition is not None:
        check_expression(breakpoint.condition)


def hit(program: Program, breakpoint: Breakpoint, step: Step) -> Hit | None:
    """Whether a breakpoint stops at a step: its line is about to run, or its function is called."""
    line = breakpoint.line
    of_call = step.frame.event is TraceEvent.CALL and program.starts_at(line) and not step.resumes
    if line not in step.lines or not (step.frame.event is TraceEvent.LINE or of_call):
        return None
    notes = [] if len(step.lines) == 1 else [f"the line may also be another of {step.lines}"]
    if breakpoint.condition is not None:
        try:
            if not evaluate(breakpoint.condition, step.local_vars):
                return None
        except ExpressionError as error:  # as pdb does
            notes.append(f"its condition has no value: {error}")
    return Hit(breakpoint=breakpoint, note="; ".join(notes))
