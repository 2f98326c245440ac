"""Players on the machines of a Ray cluster; each is a process with an engine and environments.

The trainer deals tasks out and takes groups back in short exchanges, and newer weights go along:
they reach episodes that are under way. A worker that dies costs the groups it was playing; another
is started in its place.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cwm_jax.config import RunConfig, schema
from cwm_jax.rl.playing.players import AllTheTime, Deal, Dealer, Group

_LOG = logging.getLogger(__name__)
_EXCHANGE_S = 1.0  # assumed: that a worker waits for a group before it answers without one
_MOST_DEATHS = 3  # assumed: in a row, without a group between them, after which the run ends


class OnRay:
    """``Players``, over ``rl.rollout_workers`` actors."""

    def __init__(self, config: RunConfig, dealer: Dealer, params: Any, version: int):
        """``params``: the first that are played with; ``version``: of them.

        Raises:
            ImportError: Ray is not installed.
        """
        import ray

        assert config.rl is not None
        if not ray.is_initialized():
            ray.init(address=config.rl.ray_address, log_to_driver=False)
        self._ray, self._config, self._dealer = ray, config, dealer
        self._actor: Any = ray.remote(num_cpus=1, num_gpus=config.rl.rollout_worker_gpus)(Worker)
        self._ready: collections.deque[Group] = collections.deque()
        self._deaths = 0
        self.num_lost_groups = 0
        self._workers: list[_Seat] = []
        self.update_weights(params, version)
        self._workers = [self._start() for _ in range(config.rl.rollout_workers)]

    def next_group(self, timeout_s: float | None) -> Group | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            for seat in self._workers:
                self._exchange(seat)
            answers = [seat.answer for seat in self._workers]
            done, _ = self._ray.wait(answers, num_returns=1, timeout=left)
            for place, seat in enumerate(self._workers):
                if seat.answer in done:
                    self._take(place, seat)
        return self._ready.popleft()

    def update_weights(self, params: Any, version: int) -> None:
        self._weights, self._version = self._ray.put(jax.device_get(params)), version
        for seat in self._workers:  # they need not wait for the trainer to ask for groups
            if self._is_answered(seat):
                self._take(self._workers.index(seat), seat)
                self._exchange(seat)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def ready(self) -> list[Group]:
        return list(self._ready)

    def close(self) -> None:
        for seat in self._workers:
            self._ray.kill(seat.actor)
        self._workers = []

    def _start(self) -> _Seat:
        config = schema.to_json(self._config)
        return _Seat(self._actor.remote(config, self._weights, self._version), self._version)

    def _is_answered(self, seat: _Seat) -> bool:
        if seat.answer is None:
            return False
        done, _ = self._ray.wait([seat.answer], timeout=0)
        return bool(done)

    def _exchange(self, seat: _Seat) -> None:
        """Sends what a worker lacks, unless its last answer is still to come."""
        if seat.answer is not None:
            return
        assert self._config.rl is not None
        lacking = self._config.rl.groups_at_once - len(seat.playing)
        deals = [self._dealer.deal() for _ in range(lacking)]
        seat.playing |= {deal.number for deal in deals}
        weights = self._weights if seat.version != self._version else None
        seat.version = self._version
        seat.answer = seat.actor.exchange.remote(deals, weights, self._version)

    def _take(self, place: int, seat: _Seat) -> None:
        answer, seat.answer = seat.answer, None
        try:
            groups = self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            self._replace(place, seat, error)
            return
        seat.playing -= {group.number for group in groups}
        self._ready.extend(groups)
        if groups:
            self._deaths = 0

    def _replace(self, place: int, seat: _Seat, error: Exception) -> None:
        self._deaths += 1
        self.num_lost_groups += len(seat.playing)
        _LOG.warning("a rollout worker died with %d groups: %s", len(seat.playing), error)
        if self._deaths >= _MOST_DEATHS * len(self._workers):
            raise RuntimeError(
                f"rollout workers died {self._deaths} times in a row without playing a group; "
                "expected them to live: look at Ray's logs"
            ) from error
        self._workers[place] = self._start()


class _Seat:
    """A worker, what it plays, and the answer that it owes."""

    def __init__(self, actor: Any, version: int):
        self.actor, self.version = actor, version
        self.playing: set[int] = set()
        self.answer: Any = None


class Inbox:
    """``Deals`` of a worker: what the trainer has sent."""

    def __init__(self) -> None:
        self._deals: collections.deque[Deal] = collections.deque()

    def add(self, deals: Sequence[Deal]) -> None:
        self._deals.extend(deals)

    def deal(self) -> Deal | None:
        return self._deals.popleft() if self._deals else None


class Worker:
    """The process on the other side; what Ray's actors are made of."""

    def __init__(self, config: Mapping[str, Any], weights: Any, version: int):
        from cwm_jax.rl.envs.kinds import make_environments
        from cwm_jax.rl.loop import make_rollouts
        from cwm_jax.rl.weights import playing_mesh
        from cwm_jax.tokenizer import load_tokenizer

        run = schema.from_json(RunConfig, config)
        assert run.rl is not None
        self._inbox = Inbox()
        tokenizer = load_tokenizer(str(run.tokenizer.path))
        mesh = playing_mesh(jax.local_devices())
        environments = make_environments(run.rl.environments, tokenizer)
        rollouts = make_rollouts(
            run, mesh, _to_devices(weights), tokenizer, environments, ordered=False
        )
        rollouts.version = version
        self._players = AllTheTime(rollouts, self._inbox, run.rl, run.seed)
        self._most = run.rl.ready_groups

    def exchange(self, deals: Sequence[Deal], weights: Any, version: int) -> list[Group]:
        """Takes tasks and weights (None: they are as they were), gives groups that are ready."""
        self._inbox.add(deals)
        if weights is not None:
            self._players.update_weights(_to_devices(weights), version)
        return self._players.take(self._most, _EXCHANGE_S)


def _to_devices(weights: Any) -> Any:
    return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)), weights)
