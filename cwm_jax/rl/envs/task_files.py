"""Files of tasks: JSONL, read and checked as a whole before a run touches anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.fields import fields, short, text
from cwm_jax.rl.envs.record_files import read_records

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

    def read(record: Any) -> tuple[str, Task]:
        task = _task(record)
        check(task)
        return task.name, task

    return read_records(
        path, read, form=_LINES, what="task", owner=owner, whose="the environment's"
    )


def _task(value: Any) -> Task:
    record = fields(value, "the line", ("name", "data"), ("group",))
    name = text(record["name"], "name")
    data = record["data"]
    if not isinstance(data, dict):
        raise ValueError(f"data of task {name!r} is {short(data)}; expected an object: mend it")
    group = text(record.get("group", ""), f"group of task {name!r}", may_be_empty=True)
    return Task(name=name, data=data, group=group)
