"""Files of software engineering tasks: the project's own, and rows of SWE-bench.

A row is as the released evaluation has it: SWE-bench's with ``eval_script``, a shell script that
applies the hidden tests and runs them in the image. Nothing is pulled: the engine has the images.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.fields import short, text
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.task_files import read_tasks

_ROOT = "/testbed"  # Source: SWE-bench's images
# An image's reference has no double underscores. Source: SWE-bench.
_IMAGE = "docker.io/swebench/sweb.eval.x86_64.{name}:latest"
# What a line of the script that runs the tests has in it, and the format of what it writes.
_RUNNERS = (
    (re.compile(r"\bruntests\.py\b"), "django"),
    (re.compile(r"\bbin/test\b"), "sympy"),
    (re.compile(r"\bpytest\b|\btox\b.* -- "), "swebench_pytest"),
)
_OLD_NAME = re.compile(r"(\w+) \(([\w.]+)\)")  # as unittest writes it
_NEXT = "take rows that SWE-bench's harness has prepared, or write a task file of the project's"


def load_tasks(path: Path) -> tuple[list[Task], str]:
    """(the tasks of a file, "rows" or "tasks": what it has).

    Raises:
        ValueError: with path and line, for a file that is neither, or a line that cannot be used.
    """
    if not _has_rows(path):
        return read_tasks(path, read_data, owner="swe"), "tasks"
    tasks: dict[str, Task] = {}
    for place, row in _rows(path):
        try:
            task = task_of_row(row)
            read_data(task)
            if task.name in tasks:
                raise ValueError(f"instance_id {task.name!r} is there twice; expected each once")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        tasks[task.name] = task
    return list(tasks.values()), "rows"


def task_of_row(row: Mapping[str, Any]) -> Task:
    """A row as a task in a container, judged by what its script runs.

    Raises:
        ValueError: something is missing, or the script has no line that runs tests.
    """
    name = text(_value(row, "instance_id"), "instance_id")
    form, script, canary = _command(text(_value(row, "eval_script"), "eval_script"))
    image = row.get("docker_url") or row.get("image")
    issue = row.get("issue") or _value(row, "problem_statement")
    data = {
        "issue": text(issue, "issue"),
        "repository": {
            "image": image or _IMAGE.format(name=name.lower().replace("__", "_1776_")),
            "root": row.get("repo_root_path") or _ROOT,
        },
        "patch": _value(row, "patch"),
        "tests": {
            "command": f"bash -c {shlex.quote(script)}",
            "format": form,
            "files": {},  # the script has them
            "fail_to_pass": _names(row, "FAIL_TO_PASS", form),
            "pass_to_pass": _names(row, "PASS_TO_PASS", form),
            "canary": canary,
        },
    }
    return Task(name=name, data=data, group=str(row.get("repo") or ""))


def _has_rows(path: Path) -> bool:
    """By the first line; what else is wrong with the file says who reads it."""
    try:
        with path.open(encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False
    return '"instance_id"' in first or first.lstrip().startswith("[")


def _rows(path: Path):
    """(where, row) of JSON lines, or of one array."""
    content = path.read_text(encoding="utf-8")
    if content.lstrip().startswith("["):
        try:
            found = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{path}: no JSON ({error}); expected an array of rows") from None
        yield from ((f"{path}, row {n}", _row(row)) for n, row in enumerate(found))
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", _row(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}; expected a row as JSON") from None


def _row(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"it is {short(value)}; expected an object, a row of SWE-bench: {_NEXT}")
    return value


def _value(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise ValueError(f"the row has no {key!r}, but {sorted(row)}; expected it: {_NEXT}")
    return row[key]


def _names(row: Mapping[str, Any], key: str, form: str) -> list[str]:
    """The official files have the list as JSON within a string."""
    value = _value(row, key)
    try:
        names = json.loads(value) if isinstance(value, str) else value
        if not isinstance(names, list):
            raise ValueError("no list")
        return [_name(text(name, "a name"), form) for name in names]
    except ValueError as error:
        raise ValueError(
            f"{key} is {short(value)} ({error}); expected a list of names: {_NEXT}"
        ) from None


def _name(name: str, form: str) -> str:
    """As the format's parser has it."""
    if form == "django" and (old := _OLD_NAME.fullmatch(name)):
        return old[2] if old[2].endswith(f".{old[1]}") else f"{old[2]}.{old[1]}"
    return name.split()[0] if form == "swebench_pytest" else name


def _command(script: str) -> tuple[str, str, str]:
    """(format, the script with the canary at the end of the line that runs tests, its folder).

    That line is the last one that names a runner: what comes before may be a patch with the word
    in it, and afterwards the tests are put back.
    """
    lines = script.split("\n")
    for number in reversed(range(len(lines))):
        line = lines[number].strip()
        form = next((form for mark, form in _RUNNERS if mark.search(line)), None)
        if form is None or line.startswith(("#", ":", "echo ", "git ", "+", "-")):
            continue
        last = line.split()[-1]
        if last.startswith("-"):
            break
        lines[number] = f"{line} {'{canary_module}' if form == 'django' else '{canary}'}"
        return form, "\n".join(lines), _folder(last, form)
    raise ValueError(
        "eval_script has no line that ends with the tests that pytest, tox, Django's runtests.py "
        f"or sympy's bin/test are to run; expected one: {_NEXT}"
    )


def _folder(last: str, form: str) -> str:
    """Where the last of the tests is."""
    if form == "django":
        return f"tests/{last.partition('.')[0]}"
    path = last.partition("::")[0].rstrip("/")
    return (path.rpartition("/")[0] or ".") if path.endswith(".py") else path
