"""Traces as text: frames rendered and parsed, each the exact inverse of the other.

    <|begin_of_text|><|trace_context_start|>CONTEXT<|frame_sep|>                  the prompt
    <|call_sep|>LOCALS<|action_sep|>LINE<|frame_sep|>                             call, line
    <|return_sep|><|action_sep|>LINE<|arg_sep|>VALUE<|frame_sep|>                 return, exception
    <|end_of_text|>                                                               if it finished

LOCALS is a JSON object whose values are JSON strings that hold ``repr``s; ``".."`` stands for the
``repr`` of the call or line frame before it in the same scope. VALUE is a JSON string. Special
tokens stand by name; `Tokenizer.encode_with_special_tokens` and `decode` turn this text into ids
and back.

Source: outputs of the released model and its prompting guide; what neither shows is marked assumed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from json.encoder import encode_basestring_ascii as _json_string

from cwm_jax.tokenizer import (
    ACTION_SEP,
    ARG_SEP,
    BEGIN_OF_TEXT,
    CALL_SEP,
    END_OF_TEXT,
    EXCEPTION_SEP,
    FRAME_SEP,
    LINE_SEP,
    RETURN_SEP,
    SPECIAL_TOKEN_OFFSETS,
    TRACE_CONTEXT_START,
)
from cwm_jax.trace.frames import TraceEvent, TraceFrame

START_MARKER = "  # << START_OF_TRACE"
UNCHANGED = ".."

SEPARATORS = {
    TraceEvent.CALL: CALL_SEP,
    TraceEvent.LINE: LINE_SEP,
    TraceEvent.RETURN: RETURN_SEP,
    TraceEvent.EXCEPTION: EXCEPTION_SEP,
}
_EVENTS = {separator: event for event, separator in SEPARATORS.items()}
_SPECIAL_TOKEN = re.compile(
    "("
    + "|".join([*map(re.escape, SPECIAL_TOKEN_OFFSETS), r"<\|reserved_special_token_[0-9]{1,3}\|>"])
    + ")"
)


class TraceFormatError(ValueError):
    """Text that is no trace, or frames that have no text."""


@dataclasses.dataclass(frozen=True)
class TraceProblem:
    """One thing that is malformed in a trace.

    Attributes:
        frame: 0-based number of the frame in the text.
        offset: character of the text at which the frame, or the part that is wrong, begins.
        message: what was found and what was expected.
    """

    frame: int
    offset: int
    message: str

    def __str__(self) -> str:
        return f"frame {self.frame}, character {self.offset}: {self.message}"


@dataclasses.dataclass(frozen=True)
class ParsedTrace:
    """What `parse_trace` made of a text.

    Attributes:
        frames: those whose event is known; what of them could not be read is among the problems.
        finished: whether ``<|end_of_text|>`` follows the last frame.
        problems: in the order of the text; empty for a well-formed one.
    """

    frames: list[TraceFrame]
    finished: bool
    problems: list[TraceProblem]


def render_prompt(context: str) -> str:
    """The text before the first frame.

    Args:
        context: source whose entry line carries the start marker; not stripped.

    Raises:
        TraceFormatError: the source spells a special token.
    """
    check_plain(context, "context")
    return f"{BEGIN_OF_TEXT}{TRACE_CONTEXT_START}{context}{FRAME_SEP}"


def render_frames(frames: Iterable[TraceFrame], *, finished: bool = True) -> str:
    """The text of frames after the prompt.

    Args:
        frames: of one trace, from its entry call on.
        finished: whether the entry scope was left, which ``<|end_of_text|>`` says.

    Raises:
        TraceFormatError: a frame that the format cannot spell.
    """
    return "".join(render_each(frames)) + (END_OF_TEXT if finished else "")


def render_each(frames: Iterable[TraceFrame]) -> Iterator[str]:
    """The text of each frame of a trace, in order; raises as `render_frames` does."""
    previous = None
    for frame in frames:
        yield render_frame(frame, previous)
        previous = scope_locals(frame, previous)


def render_frame(frame: TraceFrame, previous: Mapping[str, str] | None) -> str:
    """The text of one frame, up to and including its ``<|frame_sep|>``.

    Args:
        frame: the frame.
        previous: locals of the call or line frame before it in its scope; None right after the
            return of a callee.

    Raises:
        TraceFormatError: a frame that the format cannot spell.
    """
    check_plain(frame.source_line, "source line")
    action = f"{ACTION_SEP}{frame.source_line}"
    if frame.arg is not None:
        return f"{SEPARATORS[frame.event]}{action}{ARG_SEP}{_json_value(frame.arg)}{FRAME_SEP}"
    known = {} if previous is None or frame.event is TraceEvent.CALL else previous
    items = [f"{_json_name(k)}: {_local(k, v, known)}" for k, v in frame.local_vars.items()]
    return f"{SEPARATORS[frame.event]}{{{', '.join(items)}}}{action}{FRAME_SEP}"


def split_prompt(text: str) -> tuple[str, str]:
    """(context, frames' text) of a whole trace; the inverse of `render_prompt` and what follows it.

    Raises:
        TraceFormatError: the text does not begin as a trace does.
    """
    start = BEGIN_OF_TEXT + TRACE_CONTEXT_START
    end = text.find(FRAME_SEP)
    if not text.startswith(start) or end < 0:
        raise TraceFormatError(
            f"text begins with {text[:60]!r}; expected {start}CONTEXT{FRAME_SEP} and frames: is it "
            "the text of a trace?"
        )
    return text[len(start) : end], text[end + len(FRAME_SEP) :]


def parse_frames(text: str) -> list[TraceFrame]:
    """The frames of a text as `render_frames` writes it; the final ``<|end_of_text|>`` may lack.

    Raises:
        TraceFormatError: the text is malformed; the message says where.
    """
    parsed = parse_trace(text)
    if parsed.problems:
        more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
        raise TraceFormatError(f"malformed trace: {parsed.problems[0]}{more}")
    return parsed.frames


def parse_trace(text: str) -> ParsedTrace:
    """Reads what a model may have written: never raises, reports what is malformed and where."""
    body, ended, rest = text.partition(END_OF_TEXT)
    frames: list[TraceFrame] = []
    problems: list[TraceProblem] = []
    previous: Mapping[str, str] | None = None
    offset, chunks = 0, body.split(FRAME_SEP)
    for number, chunk in enumerate(chunks[:-1]):
        reader = _FrameReader(number, offset)
        frame = reader.read(chunk, previous)
        problems += reader.problems
        if frame is not None:
            frames.append(frame)
            previous = scope_locals(frame, previous)
        offset += len(chunk) + len(FRAME_SEP)
    if chunks[-1]:
        message = f"{_short(chunks[-1])} is not closed; expected {FRAME_SEP} after it"
        problems.append(TraceProblem(len(chunks) - 1, offset, message))
    if rest:
        message = f"{_short(rest)} follows {END_OF_TEXT}; expected nothing"
        problems.append(TraceProblem(len(chunks) - 1, len(body) + len(END_OF_TEXT), message))
    return ParsedTrace(frames, bool(ended), problems)


def parse_frame(
    text: str, previous: Mapping[str, str] | None
) -> tuple[TraceFrame | None, list[TraceProblem]]:
    """One frame's text, its ``<|frame_sep|>`` included; the inverse of `render_frame`.

    Args:
        text: what was written; anything.
        previous: as for `render_frame`.
    """
    reader = _FrameReader(0, 0)
    frame = reader.read(text.removesuffix(FRAME_SEP), previous)
    if not text.endswith(FRAME_SEP):
        reader.note(len(text), f"{_short(text)} is not closed; expected {FRAME_SEP} after it")
    return frame, reader.problems


def scope_locals(frame: TraceFrame, previous: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """What ``".."`` refers to in the frame after this one: its ``previous``."""
    if frame.event.has_locals:
        return frame.local_vars
    # assumed: an exception leaves the scope as it was; the return of a callee ends it
    return previous if frame.event is TraceEvent.EXCEPTION else None


def is_plain(text: str) -> bool:
    """Whether a text spells no special token."""
    return "<|" not in text or not _SPECIAL_TOKEN.search(text)


def check_plain(source: str, what: str) -> None:
    """Raises TraceFormatError if a source spells a special token."""
    if "<|" in source and (found := _SPECIAL_TOKEN.search(source)):
        raise TraceFormatError(
            f"the {what} spells the special token {found.group()}; expected source without it: "
            "leave this program out, or write the literal in two parts"
        )


class _FrameReader:
    """Reads the text of one frame and notes its problems."""

    def __init__(self, number: int, offset: int) -> None:
        self._number, self._offset = number, offset
        self.problems: list[TraceProblem] = []

    def read(self, chunk: str, previous: Mapping[str, str] | None) -> TraceFrame | None:
        before, *parts = _SPECIAL_TOKEN.split(chunk)
        tokens, texts = parts[::2], parts[1::2]
        event = _EVENTS.get(tokens[0]) if tokens and not before else None
        if event is None:
            self.note(0, f"{_short(chunk)}; expected one of {', '.join(_EVENTS)} first")
            return None
        expected = [SEPARATORS[event], ACTION_SEP] + ([] if event.has_locals else [ARG_SEP])
        if tokens != expected:
            self.note(0, f"its special tokens are {' '.join(tokens)}; expected {expected}")
        of = dict(zip(reversed(tokens), reversed(texts), strict=True))  # the first of each counts
        source_line, at = of.get(ACTION_SEP, ""), len(tokens[0])
        if not event.has_locals:
            if texts[0]:
                self.note(at, f"{_short(texts[0])}; a {event.value} frame shows no locals")
            return TraceFrame(event, source_line, arg=self._value(of.get(ARG_SEP, ""), chunk))
        local_vars = self._locals(texts[0], at)
        known = {} if previous is None or event is TraceEvent.CALL else previous
        return TraceFrame(event, source_line, self._resolved(local_vars, known, at))

    def _locals(self, text: str, at: int) -> dict[str, str]:
        try:
            pairs = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            self.note(at, f"locals {_short(text)} are not JSON ({error}); expected an object")
            return {}
        if not isinstance(pairs, _Pairs):
            self.note(at, f"locals are {_short(text)}; expected a JSON object")
            return {}
        if len(dict(pairs)) != len(pairs):
            self.note(at, f"locals {_short(text)} name a variable twice")
        wrong = [key for key, value in pairs if not isinstance(value, str)]
        if wrong:
            self.note(at, f"local {wrong[0]!r} is no JSON string; expected one that holds a repr")
        return {key: value if isinstance(value, str) else "" for key, value in pairs}

    def _resolved(self, values: dict[str, str], known: Mapping[str, str], at: int):
        # an unresolved value stays "..": what refers to it is unresolved, too
        unknown = [k for k, v in values.items() if v == UNCHANGED == known.get(k, UNCHANGED)]
        if unknown:
            self.note(at, f'local {unknown[0]!r} is ".." but the frame before has no value for it')
        return {k: known.get(k, v) if v == UNCHANGED else v for k, v in values.items()}

    def _value(self, text: str, chunk: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, str):
            return value
        self.note(chunk.find(ARG_SEP), f"value {_short(text)} is no JSON string that holds a repr")
        return text

    def note(self, at: int, message: str) -> None:
        self.problems.append(TraceProblem(self._number, self._offset + max(at, 0), message))


class _Pairs(list):
    """A JSON object as its pairs, so that a key that is there twice shows."""


def _local(name: str, value: str, known: Mapping[str, str]) -> str:
    if value == UNCHANGED:
        raise TraceFormatError(
            f'local {name!r} has the repr "..", which the format keeps for "unchanged"; expected '
            "another: spell it differently"
        )
    return f'"{UNCHANGED}"' if known.get(name) == value else _json_value(value)


def _json_value(text: str) -> str:
    """A JSON string; what would read as a special token is escaped (assumed)."""
    encoded = _json_string(text)
    if "<|" in encoded:
        encoded = _SPECIAL_TOKEN.sub(lambda found: "\\u003c" + found.group()[1:], encoded)
    return encoded


_json_name = functools.lru_cache(maxsize=1 << 12)(_json_value)  # names come again, values less


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
