"""A session as JSON, for the web page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cwm_jax.debugger import comparison
from cwm_jax.debugger.comparison import Compared
from cwm_jax.debugger.program import Program
from cwm_jax.debugger.session import Session
from cwm_jax.debugger.steps import Scope, Step
from cwm_jax.trace.format import UNCHANGED
from cwm_jax.trace.frames import TraceFrame
from cwm_jax.trace.tracer import Trace


def state_of(session: Session, trace: Trace | None) -> dict[str, Any]:
    """All that the page shows.

    Args:
        session: may be changed by another thread meanwhile.
        trace: of the real run, to be compared with; None: no comparison.
    """
    steps, finished = session.steps, session.finished
    compared = None if trace is None else comparison.compare(steps, trace)
    return {
        "lines": [line.rstrip("\r\n") for line in session.program.lines],
        "marked": session.program.marked,
        "frames": [
            _frame(session.program, step, None if compared is None else compared[number])
            for number, step in enumerate(steps)
        ],
        "finished": finished,
        "first_difference": None if compared is None else comparison.first_difference(compared),
        "breakpoints": [
            {"line": point.line, "condition": point.condition}
            for point in [*session.breakpoints.values()]
        ],
    }


def _frame(program: Program, step: Step, compared: Compared | None) -> dict[str, Any]:
    frame = step.frame
    return {
        "event": frame.event.value,
        "lines": step.lines,
        "source": frame.source_line.strip(),
        "value": frame.arg,
        "locals": [_local(step, name, value) for name, value in step.local_vars.items()],
        "shows_locals": frame.event.has_locals,
        "depth": len(step.scopes),
        "stack": [_scope(program, scope) for scope in step.scopes],
        "origin": step.origin,
        "forced": None if step.forced is None else step.forced.value,
        "problems": [*step.problems],
        "compared": None if compared is None else _compared(compared),
    }


def _local(step: Step, name: str, value: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "changed": name in step.changed,
        "unresolved": value == UNCHANGED,
    }


def _scope(program: Program, scope: Scope) -> dict[str, Any]:
    lines: Sequence[int] = sorted({place.line for place in scope.places})
    text = program.lines[lines[0] - 1].strip() if lines else ""
    return {"name": scope.name, "lines": lines, "source": text}


def _compared(compared: Compared) -> dict[str, Any]:
    return {
        "verdict": compared.verdict.value,
        "wrong": [*compared.wrong],
        "wrong_locals": [*compared.wrong_locals],
        "is_first": compared.is_first,
        "why_unknown": compared.why_unknown,
        "true": None if compared.true is None else _true_frame(compared.true),
    }


def _true_frame(frame: TraceFrame) -> dict[str, Any]:
    return {
        "event": frame.event.value,
        "line": frame.lineno,
        "source": frame.source_line.strip(),
        "value": frame.arg,
        "locals": dict(frame.local_vars),
    }
