"""What a task's data may hold: keys and types of JSON, each refused in words.

Texts here say what, what was found and what was expected; `task_of` adds whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from cwm_jax.config.schema import nearest_hint
from cwm_jax.rl.environment import Task

_SHOWN_CHARACTERS = 80  # of a value in a message
T = TypeVar("T")


def task_of(kind: str, task: Task, read: Callable[[Mapping[str, Any]], T]) -> T:
    """What ``read`` makes of a task's data.

    Raises:
        ValueError: of ``read``, with the task's kind and name.
    """
    try:
        return read(task.data)
    except ValueError as error:
        raise ValueError(f"{kind} task {task.name!r}: {error}: mend the task") from None


def fields(
    value: Any, what: str, required: Collection[str], optional: Collection[str] = ()
) -> Mapping[str, Any]:
    """The value, an object with all of the required keys and none besides the optional ones."""
    known = (*required, *optional)
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {short(value)}; expected an object with {listed(known)}")
    for key in value:
        if key not in known:
            raise ValueError(
                f"{what} has the key {key!r}{nearest_hint(key, known)}; expected {listed(known)} "
                "alone"
            )
    for key in required:
        if key not in value:
            raise ValueError(f"{what} has no {key!r}; expected {listed(required)}")
    return value


def text(value: Any, what: str, *, may_be_empty: bool = False) -> str:
    """The value, a text that can be encoded."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {short(value)}; expected text")
    if not (may_be_empty or value.strip()):
        raise ValueError(f"{what} is empty; expected some text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} has half of a character, {value[error.start]!r}; expected text that "
                "UTF-8 can write"
            ) from None
    return value


def optional_text(record: Mapping[str, Any], key: str, what: str) -> str:
    """A text of the record; empty where there is none, or null."""
    value = record.get(key)
    return "" if value is None else text(value, what, may_be_empty=True)


def items(value: Any, what: str, *, may_be_empty: bool = False) -> list[Any]:
    """The value, a list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {short(value)}; expected a list")
    if not (value or may_be_empty):
        raise ValueError(f"{what} is an empty list; expected at least one")
    return value


def each(value: Any, what: str, read: Callable[[Any], T], *, may_be_empty: bool = False) -> list[T]:
    """What ``read`` makes of the items of the value, a list; its refusals name the item."""
    made = []
    for number, item in enumerate(items(value, what, may_be_empty=may_be_empty)):
        try:
            made.append(read(item))
        except ValueError as error:
            raise ValueError(f"{what}[{number}]: {error}") from None
    return made


def identifier(value: Any, what: str) -> str:
    """The value, a name of Python's."""
    if not text(value, what).isidentifier():
        raise ValueError(f"{what} is {short(value)}; expected a name, as Python has them")
    return value


def listed(names: Collection[str]) -> str:
    """Names in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def short(value: Any) -> str:
    """A value as JSON, cut."""
    try:
        spelt = json.dumps(value, default=repr)
    except (ValueError, RecursionError):
        spelt = repr(type(value))
    return spelt if len(spelt) <= _SHOWN_CHARACTERS else f"{spelt[:_SHOWN_CHARACTERS]}..."
