"""The players of all processes of a run as one: each plays tasks of its own, all get all groups."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from typing import Any

from cwm_jax.distributed import Hosts
from cwm_jax.rl.playing.players import Dealer, Group, Players

_ROUND_S = 1.0  # assumed: that a process waits for a group of its own while others may have some


class Together:
    """What the trainer takes its groups from; every process calls the same methods in turn.

    Since all are given the same groups in the same order, all make the same batches of them.
    """

    def __init__(self, players: Players, dealer: Dealer, hosts: Hosts):
        """``players``: of this process, with tasks from its ``dealer``."""
        self._players, self._dealer, self._hosts = players, dealer, hosts
        self._ready: collections.deque[Group] = collections.deque()

    def next_group(self) -> Group:
        """Waits for one; raises what has ended the playing here, or HostError for another's."""
        while not self._ready:
            self._ready += self._round()
        group = self._ready.popleft()
        for trajectory in group.trajectories:
            self._dealer.note(trajectory)
        return group

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
        furthest = max(dealers, key=lambda dealer: dealer["draws"])
        same = len(dealers) == self._hosts.count
        self._dealer.restore(dealers[self._hosts.index] if same else furthest)

    def close(self) -> None:
        self._players.close()

    def _round(self) -> list[Group]:
        """At most one group of each process."""
        if self._hosts.count == 1:
            group = self._players.next_group(None)
            assert group is not None
            return [group]
        groups = self._gather("groups", self._own_group)
        return [Group.from_json(group) for group in groups if group is not None]

    def _own_group(self) -> Any:
        group = self._players.next_group(_ROUND_S)
        return None if group is None else group.to_json()

    def _gather(self, what: str, make) -> list[Any]:
        told = self._hosts.gather(what, lambda: json.dumps(make()).encode())
        return [json.loads(text) for text in told]
