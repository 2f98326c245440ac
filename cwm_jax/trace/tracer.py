"""Traces programs in the sandbox: a context with a marked entry goes in, frames come out."""

from __future__ import annotations

import ast
import atexit
import dataclasses
import io
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

from cwm_jax.sandbox import Limits, Outcome, Reply, Worker
from cwm_jax.tokenizer import END_OF_TEXT
from cwm_jax.trace.format import START_MARKER, TraceFormatError, check_plain, render_each
from cwm_jax.trace.frames import TraceEvent, TraceFrame

FINISHED = "finished"
TRUNCATED = ("events", "bytes", "depth")
PARSE_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)  # of `ast.parse`
_RECORDER = Path(__file__).with_name("recorder.py")
_EVENTS = (TraceEvent.CALL, TraceEvent.LINE, TraceEvent.RETURN, TraceEvent.EXCEPTION)
_CALL, _RETURN = _EVENTS.index(TraceEvent.CALL), _EVENTS.index(TraceEvent.RETURN)
_MAX_SHARED = 4  # assumed: warm sandboxes that `trace_context` keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceLimits:
    """What a trace may be; the sandbox's own limits hold besides.

    Attributes:
        max_events: frames (report: traces of programs above 10k line events are dropped).
        max_bytes: of the rendered frames, counted as characters (report: 1 MB).
        max_repr_chars: a longer ``repr`` is cut and ends in ``...`` (assumed).
        max_depth: scopes that are open at once (assumed).
        cpu_s, wall_s, memory_bytes: of the run in the sandbox.
    """

    max_events: int = 10_000
    max_bytes: int = 1_000_000
    max_repr_chars: int = 10_000
    max_depth: int = 256
    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) <= 0:
                raise ValueError(f"{field.name} is {value}; expected more than 0")

    def of_recorder(self) -> dict[str, float]:
        """Those that `recorder.Recorder` keeps."""
        names = ("max_events", "max_bytes", "max_repr_chars", "max_depth")
        return {name: getattr(self, name) for name in names}


class TraceError(ValueError):
    """A program that has no whole trace.

    Attributes:
        reason: a short name to count by: ``syntax``, ``raised`` (before the entry),
            ``not-entered``, ``missing-arguments``, ``refused``, ``incomplete``, ``recursion`` (the
            program used up the stack), ``marker`` (no marked line, or several), ``format`` (context
            or frames have no text in the format), one of `TRUNCATED`, or how the sandbox ended the
            run: ``cpu``, ``wall``, ``memory``, ``output``, ``exit``, ``signal``, ``error``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What a run left: frames up to its end or to a limit.

    Attributes:
        context: the source with its marked line.
        frames: from the entry's call on.
        text: the frames as `render_frames` writes them.
        status: ``finished``, or the limit that cut the trace: one of `TRUNCATED`.
        raised: whether an exception left the entry; its last frame then "returns" None.
        message: details of a limit.
        python: version of the interpreter that ran it.
        cut_reprs: distinct reprs that were longer than the limit.
        failed_reprs: reprs that raised.
    """

    context: str
    frames: list[TraceFrame]
    text: str
    status: str
    raised: bool
    message: str
    python: str
    cut_reprs: int
    failed_reprs: int

    @property
    def finished(self) -> bool:
        return self.status == FINISHED


class Tracer:
    """A warm sandbox that traces one program after another; a context manager.

    Args:
        limits: of every trace.
        unsafe: run without bubblewrap: the programs can do what this process can.
        age: of the sandbox, see `Worker`: tracers that are to agree have other ones.

    Raises:
        SandboxError: no sandbox can be had.
    """

    def __init__(
        self, limits: TraceLimits = TraceLimits(), *, unsafe: bool = False, age: int = 0
    ) -> None:
        self.limits, self.unsafe, self.age = limits, unsafe, age
        sandbox_limits = Limits(
            cpu_s=limits.cpu_s, wall_s=limits.wall_s, memory_bytes=limits.memory_bytes
        )
        self._worker = Worker(_RECORDER, limits=sandbox_limits, unsafe=unsafe, age=age)

    def trace(self, context: str) -> Trace:
        """Runs a context and returns the trace of its marked scope, whole or cut by a limit.

        The module runs untraced; the first entry of the marked function is the trace. If nothing
        enters it, it is called without arguments. A mark on a line that is no ``def`` stands for
        the module itself.

        Raises:
            TraceError: there is no trace; ``reason`` names why.
        """
        entry = find_entry(context)
        request = {"source": context, "entry": entry, "limits": self.limits.of_recorder()}
        answer = _answer(self._worker.call(json.dumps(request).encode()))
        if answer.status not in (FINISHED, *TRUNCATED):
            raise TraceError(answer.status, f"no trace: {answer.status}: {answer.message}")
        return trace_from_answer(context, answer, is_module=entry is None, limits=self.limits)

    def close(self) -> None:
        """Ends the sandbox."""
        self._worker.close()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def trace_context(
    context: str, *, limits: TraceLimits = TraceLimits(), unsafe: bool = False
) -> list[TraceFrame]:
    """The frames of a context's marked scope, from its entry until it is left.

    Args:
        context: source whose entry line carries the start marker; see `Tracer.trace`.
        limits: a trace beyond them is refused, never cut.
        unsafe: run without bubblewrap.

    Raises:
        TraceError: a ValueError: no marked line, a missing argument, a run beyond the limits, ...
        SandboxError: no sandbox can be had.
    """
    trace = _shared_tracer(limits, unsafe, os.getpid()).trace(context)
    if not trace.finished:
        raise TraceError(
            trace.status,
            f"trace is cut after {len(trace.frames)} frames: {trace.message}; expected it to end "
            "within its limits: raise them, or take Tracer.trace, which returns what there is",
        )
    return trace.frames


_shared: dict[tuple[TraceLimits, bool, int], Tracer] = {}  # the latest used is last
_shared_lock = threading.Lock()


def _shared_tracer(limits: TraceLimits, unsafe: bool, pid: int) -> Tracer:
    """The process's own for these limits; the least recently used of too many is closed."""
    key = (limits, unsafe, pid)
    with _shared_lock:
        tracer = _shared.pop(key, None)
        if tracer is None:
            tracer = Tracer(limits, unsafe=unsafe)
            atexit.register(tracer.close)
        _shared[key] = tracer
        evicted = [(old[2], _shared.pop(old)) for old in list(_shared)[:-_MAX_SHARED]]
    for owner, old in evicted:
        if owner == pid:  # after a fork, the parent goes on with its own
            old.close()
            atexit.unregister(old.close)
    return tracer


def marked_line(context: str) -> int:
    """1-based number of the line that carries the start marker.

    Raises:
        TraceError: none does, or several.
    """
    marked = [n for n, line in enumerate(source_lines(context), 1) if unmarked(line) != line]
    if len(marked) != 1:
        raise TraceError(
            "marker",
            f"{len(marked)} lines end with {START_MARKER!r}; expected one: mark the line where the "
            "trace starts",
        )
    return marked[0]


def find_entry(context: str) -> tuple[int, str] | None:
    """(first line, name) of the marked function's code; None where the mark is on no ``def``.

    Raises:
        TraceError: no or several marked lines, or the source does not parse.
    """
    line = marked_line(context)
    try:
        tree = ast.parse(context)
    except PARSE_ERRORS as error:
        raise TraceError("syntax", f"no trace: {type(error).__name__}: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = _first_line(node)
            if line == node.lineno or first <= line < _first_line(node.body[0]):
                return first, node.name
    return None


def _first_line(node: ast.stmt) -> int:
    """Decorators included."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def source_lines(context: str) -> list[str]:
    """Physical lines as Python counts them, with their ends: no form feed begins a new one."""
    return list(io.StringIO(context, newline=""))


def unmarked(line: str) -> str:
    """A line with its end, without the start marker."""
    content = line.rstrip("\r\n")
    return content.removesuffix(START_MARKER) + line[len(content) :]


@dataclasses.dataclass(frozen=True)
class RecorderAnswer:
    """What the recorder says; made by a process that ran untrusted code, so every type is checked.

    ``names`` are those of the locals of an event, ``reprs`` texts; an event is (4 * line + kind,
    number of its names or -1, numbers of its reprs or the number of its value).
    """

    status: str
    message: str
    raised: bool = False
    python: str = ""
    events: list[Any] = dataclasses.field(default_factory=list)
    names: list[list[str | None]] = dataclasses.field(default_factory=list)
    reprs: list[str] = dataclasses.field(default_factory=list)
    cut_reprs: int = 0
    failed_reprs: int = 0


def _answer(reply: Reply) -> RecorderAnswer:
    if reply.outcome is not Outcome.OK:
        return RecorderAnswer(reply.outcome.value, reply.detail)
    try:
        return answer_from_json(json.loads(reply.value or b""))
    except (ValueError, RecursionError):
        return RecorderAnswer("error", "the run answered what no recorder writes")


def answer_from_json(values: Any) -> RecorderAnswer:
    """Raises TraceError for what no recorder writes."""
    try:
        answer = RecorderAnswer(**values)
        if (
            _are(list, answer.events, answer.names, answer.reprs)
            and _are(str, answer.status, answer.message, answer.python, *answer.reprs)
            and _are(int, answer.cut_reprs, answer.failed_reprs)
            and _are(bool, answer.raised)
        ):
            return answer
    except TypeError:
        pass
    raise TraceError("error", "the run answered what no recorder writes")


def _are(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def trace_from_answer(
    context: str, answer: RecorderAnswer, *, is_module: bool, limits: TraceLimits
) -> Trace:
    """The trace of a context that a recorder's events make.

    Raises:
        TraceError: they do not fit the context, or have no text.
    """
    status, message, texts = answer.status, answer.message, []
    try:
        check_plain(context, "context")
        _check_events(answer, limits)
        frames = _frames(answer, context, is_module=is_module)
        left = limits.max_bytes
        for text in render_each(frames):  # no more of it than is kept
            left -= len(text)
            if left < 0:
                status, message = "bytes", f"more than {limits.max_bytes} bytes of text"
                break
            texts.append(text)
    except TraceFormatError as error:
        raise TraceError("format", f"no trace: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TraceError("error", f"the run answered what no recorder writes: {error}") from error
    return Trace(
        context=context,
        frames=frames[: len(texts)],
        text="".join(texts) + (END_OF_TEXT if status == FINISHED else ""),
        status=status,
        raised=answer.raised and status == FINISHED,
        message=message,
        python=answer.python,
        cut_reprs=answer.cut_reprs,
        failed_reprs=answer.failed_reprs,
    )


def _check_events(answer: RecorderAnswer, limits: TraceLimits) -> None:
    """Raises ValueError unless they are as many as may be, and nest as the calls of one entry."""
    kinds = [line_and_kind & 3 for line_and_kind, *_ in answer.events]
    steps = ((kind == _CALL) - (kind == _RETURN) for kind in kinds)
    depths = list(itertools.accumulate(steps, initial=0))
    if len(kinds) > limits.max_events:
        raise ValueError(f"{len(kinds)} events; expected at most {limits.max_events}")
    if kinds[:1] != [_CALL] or (answer.status == FINISHED and depths[-1]):
        raise ValueError(
            f"first event {kinds[:1]}, {depths[-1]} scopes left open; expected a call, 0"
        )
    if min(depths) < 0:
        raise ValueError("a scope is left twice; expected each once")


def _frames(answer: RecorderAnswer, context: str, *, is_module: bool) -> list[TraceFrame]:
    lines = [unmarked(line) for line in source_lines(context)]
    names, reprs = answer.names, answer.reprs
    frames = []
    for line_and_kind, keys, values in answer.events:
        lineno, kind = divmod(line_and_kind, 4)
        if not 0 <= lineno <= len(lines):
            raise ValueError(f"line {lineno}; expected one of {len(lines)}")
        if keys < 0:
            frames.append(TraceFrame(_EVENTS[kind], lines[lineno - 1], {}, reprs[values], lineno))
            continue
        if is_module and not frames:  # CPython calls a module at line 0 or 1
            lineno = marked_line(context)
        pairs = zip(names[keys], values, strict=True)
        local_vars = {name: reprs[number] for name, number in pairs if name is not None}
        frames.append(TraceFrame(_EVENTS[kind], lines[lineno - 1], local_vars, None, lineno))
    return frames
