"""One step of an execution trace: what ``sys.settrace`` reports, as plain text."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence


class TraceEvent(enum.Enum):
    """The events of ``sys.settrace``."""

    CALL = "call"
    LINE = "line"
    RETURN = "return"
    EXCEPTION = "exception"

    @property
    def has_locals(self) -> bool:
        """Whether a frame of this event shows local variables; the others show a value."""
        return self in (TraceEvent.CALL, TraceEvent.LINE)


@dataclasses.dataclass(frozen=True)
class TraceFrame:
    """One event: an observation (the locals) and an action (the source line that runs next).

    Attributes:
        event: what happened.
        source_line: the physical line with indentation and newline, without the start marker.
        local_vars: name to ``repr`` before the line runs, in the order of ``f_locals``; never
            ``".."``, which only the format knows. Empty for RETURN and EXCEPTION.
        arg: ``repr`` of what is returned or raised; None for CALL and LINE.
        lineno: 1-based line of ``source_line`` in the context; None where it is not known (parsed
            text). Not compared.
    """

    event: TraceEvent
    source_line: str
    local_vars: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arg: str | None = None
    lineno: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.event.has_locals == (self.arg is not None):
            expected = "no arg" if self.event.has_locals else "an arg"
            raise ValueError(f"{self.event.value} frame: arg is {self.arg!r}; expected {expected}")
        if self.local_vars and not self.event.has_locals:
            raise ValueError(f"{self.event.value} frame: has locals; expected none")


def returned_value(frames: Sequence[TraceFrame | None]) -> str | None:
    """``repr`` of what the entry scope returned.

    Args:
        frames: of a trace; None where a model wrote no readable one.

    Returns:
        None where the last frame does not leave the entry scope, or an exception does: CPython
        then reports a return of ``None`` right after it.
    """
    events = [None if frame is None else frame.event for frame in frames]
    depth = events.count(TraceEvent.CALL) - events.count(TraceEvent.RETURN)
    if not frames or depth or events[-2:-1] == [TraceEvent.EXCEPTION]:
        return None
    return None if frames[-1] is None else frames[-1].arg
