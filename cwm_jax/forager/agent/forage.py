"""Tasks to trajectories: in the order of the tasks, the same bytes for any number of workers.

A file that is there is gone on with: each line counts once it is whole, so a kill loses the
episodes in flight, and those that wait for one before them. Seconds, which differ from run to run,
go to ``NAME.seconds.jsonl``; a kill between the two files loses one of them.

An episode whose sandbox or host fails, or whose process dies, is tried twice; then it is a row of
outcome ``environment``, and the next one is played.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.trajectories import ENVIRONMENT, Trajectory, trajectory_from_json
from cwm_jax.forager.agent.loop import EpisodeLimits, Policy, not_played, play
from cwm_jax.forager.agent.policies.asked import AnswerSettings, ModelPolicies
from cwm_jax.forager.agent.policies.fixer import fixer
from cwm_jax.forager.agent.policies.scripted import Scripted, explorer, oracle
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.storage import LineFile, StorageError, write_json
from cwm_jax.trace.corpus.engines import Engine

PROGRAMS = ("oracle", "explorer", "fixer")
MODELS = ("endpoint", "engine")
POLICIES = (*PROGRAMS, *MODELS)
_TRIES = 2  # of an episode whose environment fails, as of one whose process dies; assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForageSettings:
    """What episodes depend on besides their task.

    Attributes:
        policy: one of `POLICIES`.
        seed: of what a policy draws.
        limits: of each episode.
        unsafe: without bubblewrap.
        answers: of a model, how it is asked.
        model: of a model, its name and whatever else tells it from others.
    """

    policy: str
    seed: int = 0
    limits: EpisodeLimits = dataclasses.field(default_factory=EpisodeLimits)
    unsafe: bool = False
    answers: AnswerSettings | None = None
    model: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; expected one of {', '.join(POLICIES)}")
        assert (self.model is not None) == (self.policy in MODELS), "models have settings of theirs"

    @property
    def actor(self) -> str:
        """Who acts, as trajectories have it: a model's name, or the policy's."""
        return self.policy if self.model is None else self.model["name"]


def model_settings(policies: ModelPolicies, **others: Any) -> ForageSettings:
    """Settings of a run whose policies are a model's; ``others`` as of `ForageSettings`."""
    return ForageSettings(answers=policies.settings, model=dict(policies.identity()), **others)


def forage(
    tasks: Sequence[Task],
    out: Path,
    settings: ForageSettings,
    *,
    engine: Engine,
    policies: ModelPolicies | None = None,
) -> int:
    """Plays an episode of each task that the file lacks; how many were played.

    Args:
        tasks, out, settings: of the run.
        engine: where episodes are played.
        policies: of a model; they stay in this process, so the engine has to be one of threads.

    Raises:
        StorageError: another process writes the file, or it is of other tasks or settings.
        ModelFailure: the model answers nothing more; the episodes before are kept.
        RuntimeError: an episode could not be played; those before it are kept.
    """
    assert (policies is not None) == (settings.model is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = LineFile(out, shown=out, otherwise="name another --out")
    seconds = LineFile(_beside(out), shown=_beside(out), otherwise="name another --out")
    play_all = functools.partial(_played, settings, policies)
    try:
        num_done = _done(file.lines(), tasks, settings, out)
        seconds.lines()
        rest = tasks[num_done:]
        chunks = ([task] for task in rest)
        for result in engine.map_chunks(play_all, chunks, functools.partial(_died, settings)):
            row, took = result.splitlines(keepends=True)
            file.add(row)
            seconds.add(took)
        return len(rest)
    finally:
        file.close()
        seconds.close()


def episode_name(task: Task, settings: ForageSettings) -> str:
    """Of the trajectory."""
    return f"{task.name}/{settings.actor}/{settings.seed}"


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


def _played(
    settings: ForageSettings, policies: ModelPolicies | None, tasks: Sequence[Task]
) -> bytes:
    return b"".join(_lines_of(task, settings, policies) for task in tasks)


def _lines_of(task: Task, settings: ForageSettings, policies: ModelPolicies | None) -> bytes:
    """The row, and what it took."""
    name, began = episode_name(task, settings), time.monotonic()
    for tried in range(1, _TRIES + 1):
        row = play(
            name,
            task,
            _policy(task, settings, policies),
            policy_name=settings.actor,
            limits=settings.limits,
            unsafe=settings.unsafe,
        )
        if row.outcome != ENVIRONMENT or tried == _TRIES:
            return _written(row, time.monotonic() - began)
    raise AssertionError


def _policy(task: Task, settings: ForageSettings, policies: ModelPolicies | None) -> Policy:
    if policies is not None:
        return policies.policy(f"{settings.seed}/{task.name}")
    if settings.policy == "oracle":
        return Scripted(oracle(read_data(task)))
    if settings.policy == "fixer":
        return Scripted(fixer(read_data(task).issue))
    return Scripted(explorer(f"{settings.seed}/{task.name}"))


def _died(settings: ForageSettings, task: Task) -> bytes:
    reason = "the episode ended its process twice: is there memory enough?"
    name = episode_name(task, settings)
    return _written(not_played(name, task, reason, policy_name=settings.actor), 0.0)


def _written(row: Trajectory, took_s: float) -> bytes:
    parts = (row.to_json(), {"name": row.name, "seconds": round(took_s, 3)})
    return b"".join(json.dumps(part).encode() + b"\n" for part in parts)


def _beside(out: Path) -> Path:
    return out.with_suffix(".seconds.jsonl")
