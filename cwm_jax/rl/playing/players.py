"""Groups of episodes for the trainer: played in turns with it, or all the time in a thread."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from cwm_jax.config import RLConfig
from cwm_jax.rl.environment import Task
from cwm_jax.rl.playing.rollout import Rollouts, Wanted
from cwm_jax.rl.playing.tasks import TaskStream
from cwm_jax.rl.selection import Curriculum
from cwm_jax.rl.trajectory import Trajectory, from_json, to_json

_NO_TASK_S = 0.02  # until it is asked for again
_MOST_PASSED_OVER = 100_000  # assumed: draws in a row that a curriculum may refuse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Episodes of one task, one at least, in the order of their seeds."""

    trajectories: tuple[Trajectory, ...]

    @property
    def number(self) -> int:
        """Unique in the run."""
        return self.trajectories[0].group

    def to_json(self) -> list[dict[str, Any]]:
        return [to_json(trajectory) for trajectory in self.trajectories]

    @classmethod
    def from_json(cls, records: Sequence[Mapping[str, Any]]) -> Group:
        return cls(trajectories=tuple(map(from_json, records)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deal:
    """A task to be played by a group."""

    number: int
    environment: str
    task: Task


class Deals(Protocol):
    """Where tasks come from; any thread may ask."""

    def deal(self) -> Deal | None:
        """None: there is none now."""
        ...


class Dealer:
    """Numbers the groups of all processes and says what this one's are asked.

    Each process deals to all and keeps what is its own: in turns, where all know the same outcomes,
    they deal what one process would. All the time, a curriculum knows some outcomes sooner on one
    process than on another, and now and then two of them play the same task.
    """

    def __init__(self, stream: TaskStream, curriculum: Curriculum, *, place: int = 0, of: int = 1):
        """``place``, ``of``: number of this process and of all."""
        self._stream, self._curriculum = stream, curriculum
        self._place, self._of = place, of
        self._next = 0
        self._lock = threading.Lock()

    def deal(self) -> Deal:
        with self._lock:
            while True:
                deal = self._next_deal()
                if deal.number % self._of == self._place:
                    return deal

    def _next_deal(self) -> Deal:
        number, environment = self._next, self._stream.turn()
        self._next += 1
        return Deal(number=number, environment=environment, task=self._task(environment))

    def _task(self, environment: str) -> Task:
        """Where tasks are passed over, others of the same environment take their turn."""
        for _ in range(_MOST_PASSED_OVER):
            number, task = self._stream.draw(environment)
            if self._curriculum.asks(environment, task.name, number):
                return task
        raise RuntimeError(
            f"rl.curriculum passed over {_MOST_PASSED_OVER} tasks of {environment!r} in a row; "
            "expected some within its solve rates: widen them, or give other tasks"
        )

    def note(self, trajectory: Trajectory) -> None:
        with self._lock:
            self._curriculum.note(trajectory)

    def state(self) -> dict[str, Any]:
        with self._lock:
            rates = self._curriculum.state()
            return {"next": self._next, **self._stream.state(), "rates": rates}

    def restore(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._next = state["next"]
            self._stream.restore(state)
            self._curriculum.restore(state["rates"])


def wanted_episodes(deal: Deal, group_size: int, seed: int) -> list[Wanted]:
    """The episodes of a group; their draws are functions of the run's seed and their numbers."""
    return [
        Wanted(
            environment=deal.environment,
            task=deal.task,
            group=deal.number,
            seed=random.Random(f"{seed}/{deal.number}/{n}").getrandbits(63),
        )
        for n in range(group_size)
    ]


class Players(Protocol):
    """Whoever plays for one process.

    Attributes:
        num_lost_groups: that those who played them took with them; since the process began.
    """

    num_lost_groups: int

    def next_group(self, timeout_s: float | None) -> Group | None:
        """Waits for one, None for ever; raises what has ended the playing."""
        ...

    def update_weights(self, params: Any, version: int) -> None:
        """Copies that no one else uses."""
        ...

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """While entered, nothing is computed on this process' devices."""
        ...

    def ready(self) -> list[Group]:
        """Groups that were not given out yet."""
        ...

    def close(self) -> None: ...


class Nobody:
    """``Players`` of a process for which others play."""

    num_lost_groups = 0

    def next_group(self, timeout_s: float | None) -> None:
        return None

    def update_weights(self, params: Any, version: int) -> None:
        pass

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def ready(self) -> list[Group]:
        return []

    def close(self) -> None:
        pass


class Table:
    """Groups that are being played; what is complete goes to ``ready``."""

    def __init__(self, rollouts: Rollouts, config: RLConfig, seed: int):
        self.ready: collections.deque[Group] = collections.deque()
        self._rollouts, self._config, self._seed = rollouts, config, seed
        self._playing: dict[int, dict[int, Trajectory]] = {}
        self._seeds: dict[int, list[int]] = {}

    @property
    def num_groups(self) -> int:
        return len(self._playing)

    def begin(self, deal: Deal) -> None:
        wanted = wanted_episodes(deal, self._config.group_size, self._seed)
        self._playing[deal.number] = {}
        self._seeds[deal.number] = [episode.seed for episode in wanted]
        for episode in wanted:
            self._rollouts.add(episode)

    def step(self) -> None:
        for trajectory in self._rollouts.step():
            group = self._playing[trajectory.group]
            group[trajectory.seed] = trajectory
            if len(group) == self._config.group_size:
                del self._playing[trajectory.group]
                seeds = self._seeds.pop(trajectory.group)
                self.ready.append(Group(trajectories=tuple(group[s] for s in seeds)))


class InTurns:
    """Plays a round of groups when the trainer has none left; every bit repeats."""

    num_lost_groups = 0

    def __init__(self, rollouts: Rollouts, dealer: Dealer, config: RLConfig, seed: int):
        self._rollouts, self._dealer, self._config = rollouts, dealer, config
        self._table = Table(rollouts, config, seed)

    def next_group(self, timeout_s: float | None) -> Group:
        """However long it takes: what is played in a round must not depend on the clock."""
        ready = self._table.ready
        if not ready:
            for _ in range(self._config.groups_at_once):
                self._table.begin(self._dealer.deal())
            while self._table.num_groups:
                self._table.step()
            in_order = sorted(ready, key=lambda group: group.number)
            ready.clear()
            ready.extend(in_order)
        return ready.popleft()

    def update_weights(self, params: Any, version: int) -> None:
        self._rollouts.update_weights(params, version)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def ready(self) -> list[Group]:
        return list(self._table.ready)

    def close(self) -> None:
        self._rollouts.close()


class AllTheTime:
    """Plays in a thread while the trainer trains; weights reach running episodes.

    Episodes under way are not part of its state: their tasks come again in the next epoch.
    """

    num_lost_groups = 0

    def __init__(self, rollouts: Rollouts, deals: Deals, config: RLConfig, seed: int):
        self._rollouts, self._deals = rollouts, deals
        self._config: RLConfig = config
        self._table = Table(rollouts, config, seed)
        self._changed = threading.Condition()
        self._update: tuple[Any, int] | None = None
        self._closing = self._pausing = self._stepping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def next_group(self, timeout_s: float | None) -> Group | None:
        taken = self.take(1, timeout_s)
        return taken[0] if taken else None

    def take(self, most: int, timeout_s: float | None) -> list[Group]:
        """Groups that are ready, one at least unless the time is over first."""
        ready = self._table.ready
        with self._changed:
            if self._thread.ident is None:  # not before the dealer was restored
                self._thread.start()
            self._changed.wait_for(lambda: ready or self._failure is not None, timeout_s)
            if self._failure is not None:
                raise RuntimeError("the rollouts failed; the cause is above") from self._failure
            taken = [ready.popleft() for _ in range(min(most, len(ready)))]
            self._changed.notify_all()
            return taken

    def update_weights(self, params: Any, version: int) -> None:
        with self._changed:
            self._update = (params, version)  # an older one that still waits is of no use
            self._changed.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Two threads must not launch programs on the same devices: their parts may cross."""
        with self._changed:
            self._pausing = True
            self._changed.wait_for(lambda: not self._stepping)
        try:
            yield
        finally:
            with self._changed:
                self._pausing = False
                self._changed.notify_all()

    def ready(self) -> list[Group]:
        with self._changed:
            return list(self._table.ready)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._rollouts.close()

    def _run(self) -> None:
        try:
            while self._prepare():
                self._table.step()
                with self._changed:
                    self._stepping = False
                    self._changed.notify_all()
        except BaseException as failure:
            with self._changed:
                self._stepping, self._failure = False, failure
                self._changed.notify_all()

    def _prepare(self) -> bool:
        """Newer weights, and groups up to as many as may be under way; False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or (not self._pausing and (self._has_room or self._table.num_groups))
                )
            )
            if self._closing:
                return False
            self._stepping = True
            update, self._update = self._update, None
        if update is not None:
            self._rollouts.update_weights(*update)
        while self._has_room and (deal := self._deals.deal()) is not None:
            self._table.begin(deal)
        if not self._table.num_groups:  # there was no task
            time.sleep(_NO_TASK_S)
        return True

    @property
    def _has_room(self) -> bool:
        few_ready = len(self._table.ready) < self._config.ready_groups
        return few_ready and self._table.num_groups < self._config.groups_at_once
