"""Which task comes next: environments by weight, each one's tasks in an order of the seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.config import EnvironmentConfig
from cwm_jax.data.split import is_heldout
from cwm_jax.rl.environment import Task


class TaskStream:
    """An endless stream of (environment, task); its state is small, and fit for JSON."""

    def __init__(
        self,
        environments: Sequence[EnvironmentConfig],
        tasks: Mapping[str, Sequence[Task]],
        seed: int,
    ):
        """``tasks``: of each environment by name, held-out ones not among them.

        Raises:
            ValueError: an environment has none.
        """
        for environment in environments:
            if not tasks[environment.name]:
                raise ValueError(
                    f"environment {environment.name!r} has no task to train on; expected one or "
                    "more: name another path, or lower data.heldout_fraction"
                )
        self._environments, self._tasks, self._seed = list(environments), tasks, seed
        self._drawn = {environment.name: 0 for environment in environments}
        self._orders: dict[str, tuple[int, list[int]]] = {}  # of each, its epoch and the order then

    def draw(self) -> tuple[str, Task]:
        """The next one."""
        name = min(self._environments, key=self._turn).name
        tasks, number = self._tasks[name], self._drawn[name]
        self._drawn[name] += 1
        epoch, place = divmod(number, len(tasks))
        return name, tasks[self._order(name, epoch)[place]]

    def _turn(self, environment: EnvironmentConfig) -> float:
        return (self._drawn[environment.name] + 1) / environment.weight

    def state(self) -> dict[str, Any]:
        return {"drawn": dict(self._drawn)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._drawn = {name: state["drawn"][name] for name in self._drawn}

    def _order(self, name: str, epoch: int) -> list[int]:
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            order = list(range(len(self._tasks[name])))
            random.Random(f"{self._seed}/{name}/{epoch}").shuffle(order)
            known = self._orders[name] = (epoch, order)
        return known[1]


def split_tasks(tasks: Sequence[Task], heldout_fraction: float) -> tuple[list[Task], list[Task]]:
    """(to train on, held out), by the rule of all data: ``cwm_jax.data.split``."""
    train, heldout = [], []
    for task in tasks:
        held = is_heldout(task.group or task.name, heldout_fraction)
        (heldout if held else train).append(task)
    return train, heldout
