"""Players on the machines of a Ray cluster; each is a process with an engine and environments.

The trainer deals tasks out and takes groups back in short exchanges, and newer weights go along:
they reach episodes that are under way. A worker that dies costs the groups it was playing; another
is started in its place.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from cwm_jax.config import ModelConfig, RunConfig, schema
from cwm_jax.model.transformer import logical_axes
from cwm_jax.rl.playing.players import AllTheTime, Deal, Dealer, Group
from cwm_jax.rl.playing.rollout import Rollouts
from cwm_jax.sharding import tree_shardings

_LOG = logging.getLogger(__name__)
_EXCHANGE_S = 1.0  # assumed: that a worker waits for a group before it answers without one
_MOST_DEATHS = 3  # assumed: of each worker in a row, without a group between, before the run ends


class OnRay:
    """``Players``, over ``rl.rollout_workers`` actors.

    While ``rl.ready_groups`` groups wait here, workers get newer weights and no tasks, and keep
    what they finish. So fewer than ``ready_groups + rollout_workers * groups_at_once`` groups are
    dealt and not given out, however slow the trainer is.

    Attributes:
        num_lost_groups: that workers were playing, or had played, when they died or failed; since
            this process began.
    """

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
        self._rl = config.rl
        self._actor: Any = ray.remote(num_cpus=1, num_gpus=self._rl.rollout_worker_gpus)(Worker)
        self._ready: collections.deque[Group] = collections.deque()
        self._deaths = 0
        self.num_lost_groups = 0
        self._weights, self._version = ray.put(shipped(params)), version
        self._workers = [self._start() for _ in range(self._rl.rollout_workers)]

    def next_group(self, timeout_s: float | None) -> Group | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._take_answers(0.0)
        while not self._ready:
            self._send_all()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._take_answers(left)
        group = self._ready.popleft()
        self._send_all()  # the trainer may be away for a step
        return group

    def update_weights(self, params: Any, version: int) -> None:
        self._weights = None  # what no worker still fetches may go before its successor comes
        self._weights, self._version = self._ray.put(shipped(params)), version
        self._take_answers(0.0)
        self._send_all()

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

    # ------------------------------------------------------------ exchanges

    def _send_all(self) -> None:
        for seat in self._workers:
            if seat.answer is None:
                self._send(seat)

    def _send(self, seat: _Seat) -> None:
        """What a worker lacks: tasks for which there is room, and weights."""
        room = max(0, self._rl.ready_groups - len(self._ready))
        weights = self._weights if seat.version != self._version else None
        if not room and weights is None:
            return
        lacking = self._rl.groups_at_once - len(seat.playing) if room else 0
        deals = [self._dealer.deal() for _ in range(lacking)]
        seat.playing |= {deal.number for deal in deals}
        seat.version = self._version
        seat.answer = seat.actor.exchange.remote(deals, weights, self._version, room)

    def _take_answers(self, timeout_s: float | None) -> None:
        """All that are there, once there is one or the time is over."""
        answers = [seat.answer for seat in self._workers if seat.answer is not None]
        if not answers:
            return
        self._ray.wait(answers, num_returns=1, timeout=timeout_s)
        # all, since Ray gives the first of the list first: the last would never have their turn
        done, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        for place, seat in enumerate(self._workers):
            if seat.answer in done:
                self._take(place, seat)

    def _take(self, place: int, seat: _Seat) -> None:
        answer, seat.answer = seat.answer, None
        exceptions = self._ray.exceptions
        try:
            groups = self._ray.get(answer)
        except (exceptions.LocalRayletDiedError, exceptions.ActorUnschedulableError):
            raise  # of the cluster: another worker would fare no better
        except exceptions.RayError as error:  # it died, it raised, or its answer was lost
            self._replace(place, seat, error)
            return
        seat.playing -= {group.number for group in groups}
        self._ready.extend(groups)
        if groups:
            self._deaths = 0

    def _replace(self, place: int, seat: _Seat, error: Exception) -> None:
        self._deaths += 1
        self.num_lost_groups += len(seat.playing)
        _LOG.warning("a rollout worker failed with %d groups: %s", len(seat.playing), error)
        self._ray.kill(seat.actor)  # it may live: its devices are for the next
        if self._deaths >= _MOST_DEATHS * len(self._workers):
            raise RuntimeError(
                f"rollout workers failed {self._deaths} times in a row without playing a group; "
                "expected them to live: mend the last one's failure, or look at Ray's logs. It is: "
                f"{error}"
            ) from error
        self._workers[place] = self._start()


class _Seat:
    """A worker, what it plays or keeps, and the answer that it owes."""

    def __init__(self, actor: Any, version: int):
        self.actor, self.version = actor, version
        self.playing: set[int] = set()
        self.answer: Any = None


@dataclasses.dataclass(frozen=True)
class _Bits:
    """An array as integers: Ray moves those without copies, and bfloat16 by pickling its bytes."""

    dtype: str
    values: np.ndarray

    @classmethod
    def of(cls, array: Any) -> _Bits:
        array = np.asarray(array)
        return cls(array.dtype.name, array.view(f"u{array.dtype.itemsize}"))

    def array(self) -> np.ndarray:
        return self.values.view(np.dtype(self.dtype))


def shipped(params: Any) -> Any:
    """Weights as a ``Worker`` takes them."""
    return jax.tree.map(_Bits.of, jax.device_get(params))


def placed(weights: Any, model: ModelConfig, mesh: Mesh) -> Any:
    """``shipped`` weights on the devices: each array goes straight to where its parts belong."""
    arrays = jax.tree.map(_Bits.array, weights)
    shardings = tree_shardings(mesh, logical_axes(model), arrays)
    return jax.tree.map(jax.device_put, arrays, shardings)


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
        params = placed(weights, run.model, mesh)
        environments = make_environments(run.rl.environments, tokenizer)
        rollouts = make_rollouts(run, mesh, params, tokenizer, environments, ordered=False)
        rollouts.version = version
        placing = cast(Rollouts, _Placing(rollouts, run.model, mesh))
        self._players = AllTheTime(placing, self._inbox, run.rl, run.seed)

    def exchange(self, deals: Sequence[Deal], weights: Any, version: int, most: int) -> list[Group]:
        """Takes tasks and weights (None: they are as they were), gives groups that are ready.

        With ``most`` = 0 it answers at once.
        """
        self._inbox.add(deals)
        if weights is not None:
            self._players.update_weights(weights, version)
        return self._players.take(most, _EXCHANGE_S if most else 0.0)


class _Placing:
    """``Rollouts`` that put newer weights on the devices when they take them, and not before.

    Those that wait for that, or are replaced while they do, are in the host's memory alone.
    """

    def __init__(self, rollouts: Rollouts, model: ModelConfig, mesh: Mesh):
        self._rollouts, self._model, self._mesh = rollouts, model, mesh

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollouts, name)

    def update_weights(self, weights: Any, version: int) -> None:
        self._rollouts.update_weights(placed(weights, self._model, self._mesh), version)
