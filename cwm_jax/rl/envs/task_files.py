"""Files of tasks: JSONL, read and checked as a whole before a run touches anything."""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.fields import fields, short, text

_LINES = "one JSON object with name, data and perhaps group on each line"


def read_tasks(path: Path, check: Callable[[Task], object], *, owner: str) -> list[Task]:
    """The tasks of a file; blank lines are skipped.

    Args:
        path: of lines with ``name``, ``data``, and perhaps ``group``.
        check: raises ValueError for a task that its kind cannot use.
        owner: of the file, in words that messages begin with.

    Raises:
        ValueError: with owner, path and line: the file cannot be read or is empty; a line is no
            task, or has the name of another; or ``check`` says so.
    """
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    number = 0
    try:
        with path.open("rb") as file, _without_collecting():
            for number, line in enumerate(file, 1):
                if line.strip():
                    task = _task(line, is_first=number == 1)
                    check(task)
                    if (other := lines.setdefault(task.name, number)) != number:
                        raise ValueError(
                            f"the name {task.name!r} is that of line {other}, too; expected each "
                            "its own: rename one"
                        )
                    tasks.append(task)
    except OSError as error:
        raise ValueError(f"{owner}: {_unreadable(path, error)}") from None
    except ValueError as error:
        raise ValueError(f"{owner}: {path}:{number}: {error}") from None
    if not tasks:
        raise ValueError(
            f"{owner}: {path} has no task; expected {_LINES}: write the file again, or name another"
        )
    return tasks


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing here has cycles, and looking for some takes most of the time (measured: 5 of 7 s)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        found = "is not there"
    elif path.is_dir():
        found = "is a folder"
    else:
        found = f"cannot be read ({error.strerror})"
    return f"{path} {found}; expected a file, {_LINES}: mend the environment's path"


def _task(line: bytes, *, is_first: bool) -> Task:
    record = fields(_object(line, is_first=is_first), "the line", ("name", "data"), ("group",))
    name = text(record["name"], "name")
    data = record["data"]
    if not isinstance(data, dict):
        raise ValueError(f"data of task {name!r} is {short(data)}; expected an object: mend it")
    group = text(record.get("group", ""), f"group of task {name!r}", may_be_empty=True)
    return Task(name=name, data=data, group=group)


def _object(line: bytes, *, is_first: bool) -> Any:
    if is_first and line.startswith(codecs.BOM_UTF8):
        raise ValueError(
            "the file begins with a byte order mark (BOM); expected UTF-8 without one: save it so"
        )
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} of the line is no UTF-8; expected UTF-8: save the file so"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON ({error}); expected {_LINES}: mend it") from None
