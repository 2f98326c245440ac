"""Dialogs to be trained on: read and checked, or made of execution traces.

A line of a ``chat`` file is an object with ``messages``, each with ``role`` (system, user,
assistant, ``tool: NAME``), ``content`` and, of an assistant, perhaps ``reasoning``. Only what the
assistant writes is learnt: its text and its ends of turn. Other keys of the line, such as an id,
are not read; those that would be part of what is said, as ``tools`` and ``system``, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.data.chat import Message
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.format import is_plain
from cwm_jax.trace.frames import TraceEvent, TraceFrame
from cwm_jax.trace.tracer import marked_line, source_lines, unmarked

_KEYS = {"role", "content", "reasoning"}
_CALL = "<tool: NAME>, the call and </tool>, each on lines of its own, in the assistant's content"
_TOOL_ROLE = "its role is 'tool: NAME', and nothing else names the tool"
# What to write in place of other projects' keys of messages, their roles, and keys of lines.
_KEY_HINTS = {
    "tool_calls": f"write each call as {_CALL}",
    "function_call": f"write the call as {_CALL}",
    "reasoning_content": "call it reasoning",
    "thinking": "call it reasoning",
    "name": f"of a tool's result, {_TOOL_ROLE}; other names go into the content, or out",
    "tool_call_id": _TOOL_ROLE,
}
_ROLE_HINTS = {
    "developer": "this is 'system'",
    "tool": "name the tool in the role: 'tool: NAME'",
    "function": "name the tool in the role: 'tool: NAME'",
    "human": "this is 'user'",
    "gpt": "this is 'assistant'",
    "model": "this is 'assistant'",
}
_LINE_HINTS = {
    "tools": "describe the tools in the system message, as they are called",
    "functions": "describe the tools in the system message, as they are called",
    "system": "make it the first message, of role system",
    "system_prompt": "make it the first message, of role system",
}
# Roles that may follow each; None is the beginning.
_FOLLOWERS = {
    None: ("system", "user"),
    "system": ("system", "user"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def check_line(record: Mapping[str, Any]) -> None:
    """Raises ValueError where a line says something beside its messages, which would be lost."""
    for key, hint in _LINE_HINTS.items():
        if record.get(key):
            raise ValueError(f"it has {key!r} beside messages, which is not read: {hint}")


def parse_dialog(messages: Any) -> list[Message]:
    """The messages of one dialog that can be trained on.

    Raises:
        ValueError: it is no list of messages, a role is unknown or out of turn, a text is missing
            or of another type, or the last turn is not the assistant's.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages is {_short(messages)}; expected a list of at least two")
    found: list[Message] = []
    for number, record in enumerate(messages):
        try:
            found.append(_message(record))
            _check_turn(found)
        except ValueError as error:
            raise ValueError(f"messages[{number}]: {error}") from None
    if not found[-1].is_assistant:
        raise ValueError(
            f"the last message is from {found[-1].header!r}; expected the assistant: nothing would "
            "be learnt from what comes after its last turn: drop it"
        )
    return found


def to_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """As ``parse_dialog`` reads them."""
    records = []
    for message in messages:
        record = {"role": message.header, "content": message.content or ""}
        if message.reasoning:
            record["reasoning"] = message.reasoning
        records.append(record)
    return records


# ---------------------------------------------------------------- what a program returns


def output_question(context: str) -> str | None:
    """Asks what the ``main()`` of a trace context returns; None where it has none.

    The wording is this project's.
    """
    lines = source_lines(context)
    if not lines[marked_line(context) - 1].startswith("def main():"):
        return None
    return f"What does main() return?\n\n{''.join(map(unmarked, lines)).strip()}"


def output_dialog(episode: Episode) -> list[Message] | None:
    """The question with its answer, reasoned by the episode's trace.

    None where it has no question, or no output that is one line of plain text.
    """
    question, output = output_question(episode.context), episode.output
    if question is None or not output or not output.isprintable() or not is_plain(output):
        return None
    frames = episode.parse().frames
    return [Message("user", question), Message("assistant", output, trace_in_words(frames))]


def trace_in_words(frames: Sequence[TraceFrame]) -> str:
    """A trace as text without special tokens: each line that runs, as it stands, and its effect.

    Of the entry only the lines are there, which do nothing but call: what is called takes its
    arguments from them.
    """
    words = _Words()
    for frame in frames:
        words.add(frame)
    return "\n".join(words.lines)


class _Words:
    """Lines so far; what a line led to stands behind it, or behind its repetition after a call."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._scopes: list[Mapping[str, str]] = []
        self._last: list[tuple[int, str]] = []  # of each scope its newest line, and where it stands

    def add(self, frame: TraceFrame) -> None:
        if frame.event is TraceEvent.CALL:
            self._scopes.append(frame.local_vars)
            self._last.append((-1, ""))
            self._write(frame.source_line)
            self._note(_values(frame.local_vars))
        elif frame.event is TraceEvent.LINE:
            before = self._scopes[-1]
            changed = {k: v for k, v in frame.local_vars.items() if before.get(k) != v}
            self._scopes[-1] = frame.local_vars
            self._note(_values(changed))
            self._write(frame.source_line)
        else:
            self._note(frame.arg or "")
        if frame.event is TraceEvent.RETURN:
            self._scopes.pop()
            self._last.pop()

    def _write(self, source_line: str) -> None:
        if len(self._scopes) > 1 or not source_line.startswith("def "):
            self.lines.append(source_line.rstrip())
            self._last[-1] = len(self.lines) - 1, source_line.rstrip()

    def _note(self, text: str) -> None:
        if not text or len(self._scopes) < 2:
            return
        place, line = self._last[-1]
        if place < len(self.lines) - 1:  # other scopes have written since
            self.lines.append(line)
            self._last[-1] = len(self.lines) - 1, line
        self.lines[-1] += f"  # {text}"


def _values(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _message(record: Any) -> Message:
    if not isinstance(record, dict) or not isinstance(record.get("role"), str):
        theirs = isinstance(record, dict) and "from" in record and "role" not in record
        raise ValueError(
            f"it is {_short(record)}; expected an object with role and content"
            + (
                ": from is role, with user and assistant for human and gpt; value is content"
                * theirs
            )
        )
    if unknown := sorted({*record} - _KEYS, key=lambda key: (key not in _KEY_HINTS, str(key))):
        hint = _KEY_HINTS.get(unknown[0])
        raise ValueError(
            f"it has {unknown[0]!r}; expected {', '.join(sorted(_KEYS))} alone"
            + (f": {hint}" if hint else "")
        )
    message = Message(_role(record["role"]), record.get("content"), record.get("reasoning"))
    for key in ("content", "reasoning"):
        value = record.get(key)
        if not isinstance(value, str) and not (key == "reasoning" and value is None):
            parts = ": join the texts of its parts into one" if isinstance(value, list) else ""
            raise ValueError(f"{key} is {_short(value)}; expected text{parts}")
    if message.reasoning and not message.is_assistant:
        raise ValueError(f"{message.header!r} has reasoning; expected it of an assistant alone")
    if not message.is_tool and not message.text.strip():
        raise ValueError(f"{message.header!r} says nothing; expected some text")
    return message


def _role(role: str) -> str:
    lower = role.strip().lower()
    hint = _ROLE_HINTS.get(lower)
    if lower in ("system", "user", "assistant") and lower != role.strip():
        hint = f"this is {lower!r}"
    if hint:
        raise ValueError(
            f"message role is {role!r}; expected system, user, assistant or 'tool: NAME': {hint}"
        )
    return role


def _check_turn(messages: Sequence[Message]) -> None:
    before = _kind(messages[-2]) if len(messages) > 1 else None
    if _kind(messages[-1]) not in _FOLLOWERS[before]:
        after = f"after {messages[-2].header!r}" if before else "at the beginning"
        raise ValueError(
            f"{messages[-1].header!r} stands {after}; expected {' or '.join(_FOLLOWERS[before])}"
        )


def _kind(message: Message) -> str:
    return "tool" if message.is_tool else message.header


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:60]}..."
