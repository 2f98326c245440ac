"""Tasks to trajectories: in the order of the tasks, the same bytes for any number of workers.

A file that is there is gone on with: each line counts once it is whole, so a kill loses the
episodes in flight. Seconds, which differ from run to run, go to ``NAME.seconds.jsonl``; a kill
between the two files loses one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.trajectories import trajectory_from_json
from cwm_jax.forager.agent.loop import EpisodeLimits, Policy, play
from cwm_jax.forager.agent.policies.fixer import fixer
from cwm_jax.forager.agent.policies.scripted import Scripted, explorer, oracle
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.storage import LineFile, StorageError, write_json
from cwm_jax.trace.corpus.engines import Engine

POLICIES = ("oracle", "explorer", "fixer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForageSettings:
    """What episodes depend on besides their task.

    Attributes:
        policy: one of `POLICIES`.
        seed: of what a policy draws.
        limits: of each episode.
        unsafe: without bubblewrap.
    """

    policy: str
    seed: int = 0
    limits: EpisodeLimits = dataclasses.field(default_factory=EpisodeLimits)
    unsafe: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; expected one of {', '.join(POLICIES)}")


def forage(tasks: Sequence[Task], out: Path, settings: ForageSettings, *, engine: Engine) -> int:
    """Plays an episode of each task that the file lacks; how many were played.

    Raises:
        StorageError: another process writes the file, or it is of other tasks or settings.
        RuntimeError: an episode could not be played; those before it are kept.
    """
    file = LineFile(out, shown=out, otherwise="name another --out")
    seconds = LineFile(_beside(out), shown=_beside(out), otherwise="name another --out")
    try:
        num_done = _done(file.lines(), tasks, settings, out)
        seconds.lines()
        rest = tasks[num_done:]
        chunks = ([task] for task in rest)
        for result in engine.map_chunks(functools.partial(_played, settings), chunks, _died):
            row, took = result.splitlines(keepends=True)
            file.add(row)
            seconds.add(took)
        return len(rest)
    finally:
        file.close()
        seconds.close()


def episode_name(task: Task, settings: ForageSettings) -> str:
    """Of the trajectory."""
    return f"{task.name}/{settings.policy}/{settings.seed}"


def _done(
    lines: Sequence[bytes], tasks: Sequence[Task], settings: ForageSettings, out: Path
) -> int:
    """How many are there; the settings and tasks must be those that the file was begun with."""
    values: dict[str, Any] = dataclasses.asdict(settings)
    said = out.with_suffix(".settings.json")
    if not lines:
        write_json(said, values)
        return 0
    if not said.is_file() or json.loads(said.read_bytes()) != values:
        raise StorageError(f"{out} was begun with other settings than {values}; name another --out")
    found = [trajectory_from_json(json.loads(line)).name for line in lines]
    wanted = [episode_name(task, settings) for task in tasks[: len(lines)]]
    if found != wanted:
        raise StorageError(
            f"{out} has {len(found)} episodes, not those of this run's first tasks; expected "
            "the tasks it was begun with, in their order: name another --out"
        )
    return len(lines)


def _played(settings: ForageSettings, tasks: Sequence[Task]) -> bytes:
    parts = []
    for task in tasks:
        began, name = time.monotonic(), episode_name(task, settings)
        trajectory = play(
            name,
            task,
            _policy(task, settings),
            policy_name=settings.policy,
            limits=settings.limits,
            unsafe=settings.unsafe,
        )
        took = {"name": name, "seconds": round(time.monotonic() - began, 3)}
        parts += [trajectory.to_json(), took]
    return b"".join(json.dumps(part).encode() + b"\n" for part in parts)


def _policy(task: Task, settings: ForageSettings) -> Policy:
    if settings.policy == "oracle":
        return Scripted(oracle(read_data(task)))
    if settings.policy == "fixer":
        return Scripted(fixer(read_data(task).issue))
    return Scripted(explorer(f"{settings.seed}/{task.name}"))


def _died(task: Task) -> bytes:
    raise RuntimeError(
        f"the episode of task {task.name!r} ended its process twice; expected it to return: is "
        "there memory enough? Leave the task out, or go on with the same command"
    )


def _beside(out: Path) -> Path:
    return out.with_suffix(".seconds.jsonl")
