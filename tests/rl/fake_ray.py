"""Ray's surface as ``OnRay`` uses it, in this process; workers do what a test has told them.

An answer is there at once unless its worker is held.
"""

import types

from cwm_jax.rl.playing.players import Group
from cwm_jax.rl.trajectory import Trajectory


class RayError(Exception):
    pass


def _error(name, *bases):
    return type(name, bases or (RayError,), {})


exceptions = types.SimpleNamespace(
    RayError=RayError,
    RayActorError=_error("RayActorError"),
    RayTaskError=_error("RayTaskError"),
    ObjectLostError=_error("ObjectLostError"),
    LocalRayletDiedError=_error("LocalRayletDiedError"),
    ActorUnschedulableError=_error("ActorUnschedulableError"),
)


class Ref:
    def __init__(self, value, worker=None):
        self.value, self.worker = value, worker

    @property
    def is_there(self):
        return self.worker is None or not self.worker.held


class Worker:
    """Finishes ``speed`` groups in each exchange, the oldest first; ``error`` is raised instead."""

    def __init__(self, weights, version, speed):
        self.weights, self.version, self.speed = weights, version, speed
        self.hand, self.finished, self.exchanges = [], [], []
        self.error, self.held, self.killed = None, False, False
        self.exchange = types.SimpleNamespace(remote=self._exchange)

    def _exchange(self, deals, weights, version, most):
        assert not self.killed, "an exchange with a killed worker"
        if weights is not None:
            self.weights, self.version = weights, version
        self.exchanges.append(types.SimpleNamespace(deals=deals, weights=weights, most=most))
        if self.error is not None:
            return Ref(self.error, self)
        self.hand += deals
        done, self.hand = self.hand[: self.speed], self.hand[self.speed :]
        self.finished += done
        given, self.finished = self.finished[:most], self.finished[most:]
        return Ref([_group(deal) for deal in given], self)


class FakeRay:
    """Put in the place of the module ``ray``; ``workers`` are all that were ever made."""

    def __init__(self, speed=100):
        self.exceptions, self.speed = exceptions, speed
        self.workers, self.errors = [], []

    @property
    def living(self):
        return [worker for worker in self.workers if not worker.killed]

    def is_initialized(self):
        return True

    def remote(self, **resources):
        return lambda cls: types.SimpleNamespace(remote=self._make)

    def _make(self, config, weights, version):
        self.workers.append(Worker(weights, version, self.speed))
        self.workers[-1].error = self.errors.pop(0) if self.errors else None
        return self.workers[-1]

    def put(self, value):
        return Ref(value)

    def get(self, ref):
        assert ref.is_there
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(self, refs, *, num_returns, timeout):
        assert 0 < num_returns <= len(refs) == len(set(refs))
        assert timeout is None or timeout >= 0
        done = [ref for ref in refs if ref.is_there][:num_returns]
        assert done or timeout is not None, "it would wait for ever"
        return done, [ref for ref in refs if ref not in done]

    def kill(self, worker):
        worker.killed = True


def _group(deal):
    one = Trajectory(
        environment=deal.environment,
        task=deal.task,
        group=deal.number,
        seed=0,
        turns=(),
        ending="done",
    )
    return Group(trajectories=(one,))
