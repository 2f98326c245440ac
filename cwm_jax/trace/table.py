"""A trace as a table for people: one row for each frame, only what changed of the locals."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping

from cwm_jax.trace.frames import TraceEvent, TraceFrame

_SHORTEST = 40


def format_table(
    frames: Iterable[TraceFrame], *, width: int | None = None, all_locals: bool = False
) -> str:
    """Lines of text: number, event, line number if known, source line, locals or value.

    A callee's lines stand further right than its caller's.

    Args:
        frames: of one trace.
        width: columns; None takes the terminal's.
        all_locals: show every local in each row; else those that are new or changed in their scope.
    """
    width = max(_SHORTEST, width or shutil.get_terminal_size((120, 24)).columns)
    rows = [*_rows(frames, all_locals)]
    titles = (
        "#",
        "event",
        "line" if any(row[2] for row in rows) else "",
        "action",
        "locals, value",
    )
    rows = [titles, *rows]
    number_width, event_width, line_width = (max(len(row[i]) for row in rows) for i in range(3))
    action_width = min(max(len(row[3]) for row in rows), width // 2)
    lines = []
    for number, event, lineno, action, shown in rows:
        start = f"{number:>{number_width}}  {event:<{event_width}}  "
        start += f"{lineno:>{line_width}}  " if line_width else ""
        start += f"{_cut(action, action_width):<{action_width}}  "
        lines.append((start + _cut(shown, max(width - len(start), 12))).rstrip())
    return "\n".join(lines)


def _rows(
    frames: Iterable[TraceFrame], all_locals: bool
) -> Iterator[tuple[str, str, str, str, str]]:
    scopes: list[Mapping[str, str]] = []  # locals last seen in each open scope
    for number, frame in enumerate(frames):
        if frame.event is TraceEvent.CALL:
            scopes.append({})
        before = scopes[-1] if scopes and not all_locals else {}
        if frame.arg is not None:
            shown = f"{'->' if frame.event is TraceEvent.RETURN else '!!'} {frame.arg}"
        else:
            new = {k: v for k, v in frame.local_vars.items() if before.get(k) != v}
            shown = "  ".join(f"{name}={value}" for name, value in new.items())
            if scopes:
                scopes[-1] = frame.local_vars
        action = "  " * max(len(scopes) - 1, 0) + _printable(frame.source_line.rstrip("\r\n"))
        yield str(number), frame.event.value, str(frame.lineno or ""), action, _printable(shown)
        if frame.event is TraceEvent.RETURN and scopes:
            scopes.pop()


def _printable(text: str) -> str:
    """A text of one line whose length is its width: tabs as blanks, control characters escaped."""
    text = text.replace("\t", "    ")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
