"""One step of an execution trace: what ``sys.settrace`` reports, as plain text."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence


class TraceEvent(enum.Enum):
    """The events of ``sys.settrace``.

    Attributes:
        has_locals: whether a frame of this event shows local variables; the others show a value.
    """

    CALL = "call"
    LINE = "line"
    RETURN = "return"
    EXCEPTION = "exception"

    def __init__(self, value: str) -> None:
        self.has_locals = value in ("call", "line")


@dataclasses.dataclass(frozen=True, slots=True)
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


def is_left(frames: Sequence[TraceFrame | None]) -> bool:
    """Whether the last frame leaves the entry scope, and no scope is left twice.

    Args:
        frames: of a trace, from the entry's call on; None where a model wrote no readable one.
    """
    depth = 0
    for frame in frames:
        if frame is not None:
            depth += (frame.event is TraceEvent.CALL) - (frame.event is TraceEvent.RETURN)
        if depth < 0:
            return False
    return bool(frames) and frames[-1] is not None and not depth


def returned_value(frames: Sequence[TraceFrame | None]) -> str | None:
    """What the last frame returns if it leaves the entry scope; ``None`` of an exception, too."""
    last = frames[-1] if is_left(frames) else None
    return None if last is None else last.arg
