"""Held-out tasks, answered by the policy as it is; two evaluations compared task by task."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config import RLConfig, RunConfig
from cwm_jax.distributed import Hosts
from cwm_jax.rl.environment import Task
from cwm_jax.rl.playing.rollout import Rollouts, Wanted
from cwm_jax.rl.trajectory import Trajectory, from_json, to_json
from cwm_jax.rl.weights import WeightCopies
from cwm_jax.training.metrics import keep_metrics_through, read_metrics

_Z95 = statistics.NormalDist().inv_cdf(0.975)
EVALUATION_FILE = "evaluation.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one environment.

    Attributes:
        environment: its name.
        step: optimizer steps done.
        solve_rates: of each task's answers, by its name; failures of environments are left out.
        mean_action_tokens: of an answer.
    """

    environment: str
    step: int
    solve_rates: Mapping[str, float]
    mean_action_tokens: float

    @property
    def accuracy(self) -> float:
        return sum(self.solve_rates.values()) / max(1, len(self.solve_rates))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two accuracies on the same tasks, with its 95 % interval (normal, of paired rates)."""

    mean: float
    low: float
    high: float
    num_tasks: int


def paired_difference(before: Evaluation, after: Evaluation) -> Difference:
    """How much more often the same tasks are solved.

    Raises:
        ValueError: fewer than two tasks are in both.
    """
    old, new = before.solve_rates, after.solve_rates
    names = [name for name in old if name in new]
    if len(names) < 2:
        raise ValueError(f"{len(names)} tasks are in both evaluations; expected two or more")
    values = [new[name] - old[name] for name in names]
    mean = statistics.fmean(values)
    half = _Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean=mean, low=mean - half, high=mean + half, num_tasks=len(names))


class Evaluator:
    """Plays the first held-out tasks of each environment, each answer with its own seed.

    On several processes each plays its share.
    """

    def __init__(
        self,
        config: RunConfig,
        heldout: Mapping[str, Sequence[Task]],
        make_rollouts: Callable[..., Rollouts],
        copies: WeightCopies,
        folder: Path,
        hosts: Hosts,
    ):
        """``make_rollouts``: of weights; ``temperature`` and ``ordered`` as of ``Rollouts``."""
        assert config.rl is not None
        self._rl: RLConfig = config.rl
        self._make, self._copies = make_rollouts, copies
        self._path, self._hosts = folder / EVALUATION_FILE, hosts
        self._tasks = {name: tasks[: config.rl.eval_tasks] for name, tasks in heldout.items()}

    def evaluate(self, params: Any, step: int) -> list[Evaluation]:
        """One for each environment that has held-out tasks; they are written to the file, too."""
        weights = self._copies.of(params)
        told = self._hosts.gather("evaluation", lambda: self._own_share(weights))
        found = [from_json(record) for text in told for record in json.loads(text)]
        evaluations = []
        for name, tasks in self._tasks.items():
            played = [t for t in found if t.environment == name and not t.is_void]
            if not tasks or not played:
                continue
            evaluations.append(
                Evaluation(
                    environment=name,
                    step=step,
                    solve_rates=_solve_rates(played),
                    mean_action_tokens=statistics.fmean(t.num_action_tokens for t in played),
                )
            )
        if self._hosts.is_first:
            self._write(evaluations)
        return evaluations

    def resume(self, step: int) -> None:
        """Forgets evaluations after that step: it is done again."""
        if self._hosts.is_first and self._path.exists():
            keep_metrics_through(self._path, step)

    def _own_share(self, weights: Any) -> bytes:
        """The episodes that this process plays, as JSON."""
        rollouts = self._make(weights, temperature=self._rl.eval_temperature, ordered=True)
        wanted = [
            Wanted(environment=name, task=task, group=0, seed=sample * len(tasks) + number)
            for name, tasks in self._tasks.items()
            for sample in range(self._rl.eval_samples)
            for number, task in enumerate(tasks)
        ]
        waiting = wanted[self._hosts.index :: self._hosts.count][::-1]
        at_once = self._rl.groups_at_once * self._rl.group_size
        found = []
        with contextlib.closing(rollouts):
            while waiting or rollouts.num_playing:
                while waiting and rollouts.num_playing < at_once:
                    rollouts.add(waiting.pop())
                found += map(to_json, rollouts.step())
        return json.dumps(found).encode()

    def _write(self, evaluations: Sequence[Evaluation]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            for evaluation in evaluations:
                file.write(json.dumps(dataclasses.asdict(evaluation)) + "\n")


def _solve_rates(played: Sequence[Trajectory]) -> dict[str, float]:
    outcomes: dict[str, list[bool]] = collections.defaultdict(list)
    for trajectory in played:
        outcomes[trajectory.task.name].append(trajectory.passed)
    return {name: statistics.fmean(found) for name, found in outcomes.items()}


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Of a run, in order; of several of one step the newest."""
    found = {}
    for line in read_metrics(folder / EVALUATION_FILE):
        evaluation = Evaluation(**line)
        found[evaluation.step, evaluation.environment] = evaluation
    return [found[key] for key in sorted(found)]


def changes(folder: Path) -> list[tuple[Evaluation, Evaluation]]:
    """(first, newest) evaluation of each environment of a run."""
    by_environment: dict[str, list[Evaluation]] = {}
    for evaluation in read_evaluations(folder):
        by_environment.setdefault(evaluation.environment, []).append(evaluation)
    return [(found[0], found[-1]) for found in by_environment.values()]
