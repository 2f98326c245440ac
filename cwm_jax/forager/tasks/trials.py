"""Trials that become tasks or not: in their order, the same bytes for any number of workers.

A run's folder has ``trials.jsonl``, a line each with the task where there is one; a kill loses the
trials in flight, and the same command goes on. At the end ``tasks.jsonl`` and ``statistics.json``
are made of them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import KnownTexts
from cwm_jax.storage import LineFile, StorageError, write_json, write_whole
from cwm_jax.trace.corpus.engines import Engine

TASK = "task"  # the outcome of a trial that became one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was tried.

    Attributes:
        number: from 0 on, in the run.
        image: its folder's name.
        kind: of the fault, or of the change.
        what: was tried, in words.
        outcome: `TASK`, or why it is none.
        num_failing: tests that fail.
        task: as a line of a file of tasks has it.
    """

    number: int
    image: str
    kind: str
    what: str
    outcome: str
    num_failing: int = 0
    task: Mapping[str, Any] | None = None

    def to_line(self) -> bytes:
        """Of ``trials.jsonl``."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def run_trials(
    folder: Path,
    items: Iterable[Any],
    function: Callable[[Sequence[Any]], bytes],
    *,
    settings: Mapping[str, Any],
    died: Callable[[Any], bytes],
    engine: Engine,
    count: int | None,
    known: KnownTexts | None = None,
) -> list[Trial]:
    """Tries items until ``count`` of them have become tasks, or none is left.

    Args:
        folder: of the run; made, or gone on with.
        items: in a fixed order.
        function: of a chunk of items; gives a line for each.
        settings: that the items and lines depend on.
        died: the line of an item that ended its process twice.
        engine: where they are tried.
        count: of tasks; None tries all.
        known: texts that a task's issue with its patch may not be near to.

    Returns:
        All trials of the run, up to the one that gave the last task.

    Raises:
        StorageError: the folder is of other settings, or in use.
        RuntimeError: a trial could not be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trials.jsonl"
    file = LineFile(path, shown=path, otherwise="name another --out")
    try:
        lines = file.lines()
        settings = {**settings, "known_texts": len(known) if known else 0}
        _check_settings(folder, settings, begun=bool(lines))
        found = [_read(line, path) for line in lines]
        rest = _rest(items, len(found))
        for line in () if _enough(found, count) else engine.map_chunks(function, rest, died):
            found.append(_clean(_read(line, path), known))
            file.add(found[-1].to_line())
            if _enough(found, count):
                break
    finally:
        file.close()
    return found


def write_tasks(folder: Path, trials: Sequence[Trial]) -> dict[str, Any]:
    """Writes ``tasks.jsonl`` and ``statistics.json``; returns the statistics."""
    tasks = [trial for trial in trials if trial.task is not None]
    lines = (json.dumps(trial.task).encode() + b"\n" for trial in tasks)
    write_whole(folder / "tasks.jsonl", b"".join(lines))
    found = {
        "trials": len(trials),
        "tasks": len(tasks),
        "outcomes": _counted(trial.outcome for trial in trials),
        "kinds": _counted(trial.kind for trial in tasks),
        "images": {
            image: {
                "trials": sum(trial.image == image for trial in trials),
                "tasks": sum(trial.image == image for trial in tasks),
            }
            for image in sorted({trial.image for trial in trials})
        },
        "failing_tests": _spread([trial.num_failing for trial in tasks]),
    }
    write_json(folder / "statistics.json", found)
    return found


def table(statistics: Mapping[str, Any]) -> str:
    """Of Markdown: what `write_tasks` has counted."""
    lines = ["| image | trials | tasks |", "|---|---|---|"]
    for image, row in statistics["images"].items():
        lines.append(f"| {image} | {row['trials']} | {row['tasks']} |")
    lines.append(f"| all | {statistics['trials']} | {statistics['tasks']} |")
    for what in ("kinds", "outcomes"):
        lines += ["", f"| {what} | number |", "|---|---|"]
        lines += [f"| {name} | {number} |" for name, number in statistics[what].items()]
    if spread := statistics["failing_tests"]:
        words = ", ".join(f"{name} {number}" for name, number in spread.items())
        lines += ["", f"Failing tests of a task: {words}."]
    return "\n".join(lines)


def _check_settings(folder: Path, settings: Mapping[str, Any], *, begun: bool) -> None:
    path, values = folder / "settings.json", json.loads(json.dumps(settings))
    if not begun:
        write_json(path, values)
    elif not path.is_file() or json.loads(path.read_bytes()) != values:
        raise StorageError(
            f"{folder} was begun with other settings or images than {values}; name another --out"
        )


def _read(line: bytes, path: Path) -> Trial:
    try:
        return Trial(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{path} has a line that is no trial ({error}); name another --out"
        ) from error


def _clean(trial: Trial, known: KnownTexts | None) -> Trial:
    if trial.task is None or known is None:
        return trial
    data = trial.task["data"]
    near = known.find(data["issue"]) or known.find(data["patch"])
    if near is None:
        return trial
    return dataclasses.replace(trial, outcome="near a known text", task=None)


def _rest(items: Iterable[Any], num_done: int) -> Iterator[list[Any]]:
    for number, item in enumerate(items):
        if number >= num_done:
            yield [item]


def _enough(trials: Sequence[Trial], count: int | None) -> bool:
    return count is not None and sum(trial.task is not None for trial in trials) >= count


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(words).items()))


def _spread(numbers: Sequence[int]) -> dict[str, int]:
    ordered = sorted(numbers)
    if not ordered:
        return {}
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}
