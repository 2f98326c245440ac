"""The players of all processes of a run as one: each plays tasks of its own, all get all groups."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cwm_jax.distributed import Hosts
from cwm_jax.rl.playing.players import Dealer, Group, Players
from cwm_jax.rl.trajectory import Trajectory

_ROUND_S = 1.0  # assumed: of waiting for a group before signals and other processes are looked at


class Together:
    """What the trainer takes its groups from; every process calls the same methods in turn.

    Since all are given the same groups in the same order, all make the same batches of them.
    """

    def __init__(self, players: Players, dealer: Dealer, hosts: Hosts):
        """``players``: of this process, with tasks from its ``dealer``."""
        self._players, self._dealer, self._hosts = players, dealer, hosts
        self._ready: collections.deque[Group] = collections.deque()

    @property
    def num_lost_groups(self) -> int:
        """Of this process; Ray's workers are the first one's."""
        return self._players.num_lost_groups

    def next_group(self, is_stopping: Callable[[], bool]) -> Group | None:
        """Waits for one, None: until it is time to stop, which all processes are asked in turn.

        Raises:
            HostError: the playing has ended on another process; here, what has ended it.
        """
        while not self._ready:
            if is_stopping():
                return None
            self._ready += self._round()
        return self._ready.popleft()

    def put_back(self, groups: Sequence[Group]) -> None:
        """They come first again, in this order."""
        self._ready.extendleft(reversed(groups))

    def note(self, trajectories: Iterable[Trajectory]) -> None:
        """Outcomes, for the choice of tasks."""
        for trajectory in trajectories:
            self._dealer.note(trajectory)

    def update_weights(self, params: Any, version: int) -> None:
        """Copies that no one else uses, on this process' devices."""
        self._players.update_weights(params, version)

    def state(self) -> dict[str, Any]:
        """Groups that were not given out yet and how far the tasks were dealt, fit for JSON."""
        told = self._gather(
            "state of the players",
            lambda: {
                "ready": [group.to_json() for group in self._players.ready()],
                "dealer": self._dealer.state(),
            },
        )
        ready = [group.to_json() for group in self._ready]
        return {
            "ready": ready + [group for one in told for group in one["ready"]],
            "dealers": [one["dealer"] for one in told],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Of a run on any number of processes; on another number, tasks in between are left out."""
        self._ready.extend(map(Group.from_json, state["ready"]))
        dealers = state["dealers"]
        if len(dealers) == self._hosts.count:
            self._dealer.restore(dealers[self._hosts.index])
            return
        furthest = max(dealers, key=lambda dealer: dealer["next"])
        drawn = {
            name: max(dealer["drawn"][name] for dealer in dealers) for name in furthest["drawn"]
        }
        self._dealer.restore({**furthest, "drawn": drawn})

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """While entered, nothing is computed on the devices that play."""
        return self._players.paused()

    def close(self) -> None:
        self._players.close()

    def _round(self) -> list[Group]:
        """At most one group of each process."""
        if self._hosts.count == 1:
            group = self._players.next_group(_ROUND_S)
            return [] if group is None else [group]
        groups = self._gather("groups", self._own_group)
        return [Group.from_json(group) for group in groups if group is not None]

    def _own_group(self) -> Any:
        group = self._players.next_group(_ROUND_S)
        return None if group is None else group.to_json()

    def _gather(self, what: str, make) -> list[Any]:
        told = self._hosts.gather(what, lambda: json.dumps(make()).encode())
        return [json.loads(text) for text in told]
