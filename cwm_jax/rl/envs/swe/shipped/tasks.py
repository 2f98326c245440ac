"""Small tasks that ship with the project: a fault in real functions, and the issue that it causes.

Seeded: the same seed gives the same tasks. A fault is kept only if hidden tests fail with it, one
more at least than the issue shows, so that an answer made for the issue's call alone fails; and
only if they fail still when half of it is mended.
"""

from __future__ import annotations

import difflib
import functools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.calls import Call, CallResult, CallsFailed, call_all
from cwm_jax.rl.envs.swe.patches import diff_of_file
from cwm_jax.rl.envs.swe.shipped.mutations import KINDS, Mutation, mutations

_REPOSITORY = Path(__file__).with_name("repository")
_CALLS = Path(__file__).with_name("hidden_calls.jsonl")
_SUFFIXES = (".py", ".md")
_CHECK_S = 10.0  # assumed: all calls with one fault
_MOST_OF_A_FUNCTION = 2  # tasks, so that they are not all of the longest one
_MOST_SHOWN = 300  # characters of a value in an issue


def shipped_tasks(seed: int = 0, count: int = 20, *, unsafe: bool = False) -> tuple[Task, ...]:
    """Tasks with a fault each, all kinds in turn; their groups are the functions.

    Takes a sandbox and some hundredths of a second for each fault that is tried.

    Raises:
        EnvironmentFailure: there is no sandbox.
        ValueError: there are not so many faults.
    """
    return _made(seed, count, unsafe)


@functools.cache
def _made(seed: int, count: int, unsafe: bool) -> tuple[Task, ...]:
    files, calls = repository_files(), hidden_calls()
    wrong = _wrong(files, calls, unsafe=unsafe)
    if wrong is None:
        raise EnvironmentFailure("the shipped repository's tests do not end in the sandbox")
    assert not wrong, f"the repository's own functions fail {wrong}"
    faults = [(path, fault) for path in _modules(files) for fault in mutations(files[path])]
    makers = [
        _tasks_of_faults(
            [(path, fault) for path, fault in faults if fault.kind == kind],
            random.Random(f"{seed}/{kind}"),
            seed,
            files=files,
            calls=calls,
            unsafe=unsafe,
        )
        for kind in KINDS
    ]
    tasks: list[Task] = []
    while makers and len(tasks) < count:
        for maker in list(makers):
            task = next(maker, None)
            if task is None:
                makers.remove(maker)
            elif len(tasks) < count:
                tasks.append(task)
    if len(tasks) < count:
        raise ValueError(f"{count} tasks are wanted and the repository has {len(tasks)}: ask fewer")
    return tuple(tasks)


def repository_files() -> dict[str, str]:
    """Texts of the shipped repository by path."""
    return {
        path.relative_to(_REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(_REPOSITORY.rglob("*"))
        if path.suffix in _SUFFIXES
    }


def hidden_calls() -> list[Call]:
    """The tests of the shipped repository that its agents do not see."""
    lines = _CALLS.read_text(encoding="utf-8").splitlines()
    return [Call(**json.loads(line)) for line in lines]


def diff_of(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """A patch as git writes it, between files that are all there before and after."""
    return "".join(diff_of_file(path, before[path], after[path]) for path in sorted(before))


def half_mended(broken: str, whole: str) -> str:
    """The broken text with the first half of the lines that differ as in the whole one.

    Where a single line differs, half of that.
    """
    old, new = broken.splitlines(keepends=True), whole.splitlines(keepends=True)
    marked = [mark for mark in difflib.ndiff(old, new) if mark[0] != "?"]
    num_mended = sum(mark[0] != " " for mark in marked) // 2
    lines, num_seen = [], 0
    for sign, line in ((mark[0], mark[2:]) for mark in marked):
        num_seen += sign != " "
        if sign == " " or (sign == "+") == (num_seen <= num_mended):
            lines.append(line)
        elif sign == "+" and not num_mended:
            lines.append(line[: len(line) // 2] + "\n")
    return "".join(lines)


def _modules(files: Mapping[str, str]) -> list[str]:
    return sorted(path for path in files if path.startswith("toolbox/"))


def _tasks_of_faults(
    faults: list[tuple[str, Mutation]],
    rng: random.Random,
    seed: int,
    *,
    files: Mapping[str, str],
    calls: Sequence[Call],
    unsafe: bool,
) -> Iterator[Task]:
    rng.shuffle(faults)
    taken: dict[str, int] = {}
    for path, fault in faults:
        place = f"{path.removesuffix('.py').replace('/', '.')}.{fault.function or '(module)'}"
        if taken.get(place, 0) == _MOST_OF_A_FUNCTION:
            continue
        broken = {**files, path: fault.source}
        wrong = _wrong(broken, calls, unsafe=unsafe)
        half = {**files, path: half_mended(fault.source, files[path])}
        if wrong and len(wrong) > 1 and _wrong(half, calls, unsafe=unsafe) != []:
            taken[place] = taken.get(place, 0) + 1
            name = f"{fault.kind}/{place}/{taken[place]}/{seed}"
            yield _task(name, place, files, broken, fault=fault, calls=calls, shown=wrong[0])


def _wrong(
    files: Mapping[str, str], calls: Sequence[Call], *, unsafe: bool
) -> list[tuple[Call, CallResult]] | None:
    """Calls with wrong results; None where one does not end: such a task would take minutes."""
    encoded = {path: text.encode() for path, text in files.items()}
    try:
        results = call_all(encoded, calls, timeout_s=_CHECK_S, unsafe=unsafe)
    except CallsFailed:
        return None
    if any(result == CallResult() for result in results):
        return None
    pairs = zip(calls, results, strict=True)
    return [(call, result) for call, result in pairs if not call.is_right(result)]


def _task(
    name: str,
    place: str,
    files: Mapping[str, str],
    broken: Mapping[str, str],
    *,
    fault: Mutation,
    calls: Sequence[Call],
    shown: tuple[Call, CallResult],
) -> Task:
    given = [{k: v for k, v in vars(call).items() if v is not None} for call in calls]
    data = {
        "issue": _issue(*shown),
        "repository": {"files": dict(broken)},
        "patch": diff_of(broken, files),
        "tests": {"calls": given},
        "fault": {"kind": fault.kind, "place": place, "what": fault.what},
    }
    return Task(name=name, data=data, group=place)


def _issue(call: Call, result: CallResult) -> str:
    if result.raises is not None:
        got = f"raises {result.raises}: {_short(result.message)}"
    else:
        got = f"gives {_short(result.value or '')}"
    wanted = f"raise {call.raises}" if call.raises else f"give {_short(call.expected or '')}"
    return (
        f"Wrong result in {call.module}\n\nIn the names of `{call.module}`,\n\n    {call.call}\n\n"
        f"{got}. It should {wanted}.\n\nThis is the call I noticed; others may be affected by the "
        "same fault. The README and the docstrings say what the functions are for."
    )


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + " ..."
