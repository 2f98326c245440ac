"""What an episode is to the rest of the system: tokens in, tokens and rewards out; without JAX.

An environment holds one episode of one task. It writes the prompt, is given each answer of the
policy as tokens, and gives what the policy reads next. It knows neither models nor engines.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

# Assumed: of a call's waits together. They end by themselves, since places are given in turn and
# those before have limits; but a process that cannot be killed would hold its place for ever.
_MOST_WAITING_S = 3600.0


class EnvironmentFailure(RuntimeError):  # noqa: N818
    """The environment itself failed: a sandbox, a container, a host. Never the policy's fault.

    Its episode is dropped and counted; no reward comes of it.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One problem, as JSON can hold it.

    Attributes:
        name: unique among the tasks of an environment, and stable: splits are functions of it.
        data: what its environment needs, gold answers included; none of it is shown as it is.
        group: what held-out splits are a function of; empty for the name.
    """

    name: str
    data: Mapping[str, Any]
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the policy reads before its next action.

    Attributes:
        tokens: to be appended to the episode's. Where the policy is to go on, they end with the
            header of its turn, and with the opening of its reasoning where it is to reason.
        max_action_tokens: that the next action may have, the end of its turn included.
    """

    tokens: Sequence[int]
    max_action_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What an action led to.

    Attributes:
        observation: before the next action; None: the episode is over.
        reward: of this action; it counts for its last token.
        info: outcomes by name, as JSON can hold them: ``pass`` where there is a verdict, ``answer``
            that was read, ``reason`` of a failure in words. For people, logs and filters.
    """

    observation: Observation | None
    reward: float
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.observation is None


class Environment(Protocol):
    """One episode; one thread makes it, and calls its methods one after another."""

    def start(self) -> Observation:
        """The prompt, ``bos`` included; called once, before any step.

        Raises:
            EnvironmentFailure: there is no sandbox, no container, no such file.
        """
        ...

    def step(self, action: Sequence[int]) -> Step:
        """Takes the policy's tokens, its end of turn included if it wrote one.

        An action that does not end its turn was cut at ``max_action_tokens``; where the episode
        goes on, the observation begins with the end of turn that it lacks.

        Raises:
            EnvironmentFailure: as ``start``.
        """
        ...

    def close(self) -> None:
        """Ends what the episode holds; again, it does nothing.

        Called in any case, after a call that took too long as soon as that has returned.
        """
        ...


@contextlib.contextmanager
def waiting_for_others() -> Iterator[None]:
    """Around an environment's wait for a place that other episodes hold: it is no time of its own.

    Threads that an environment starts belong to its call where they run in a copy of its context:
    ``contextvars.copy_context().run``. Outside of a call it does nothing.
    """
    own_time = _own_time.get()
    with own_time.stopped() if own_time else contextlib.nullcontext():
        yield


class OwnTime:
    """Of a call of an environment: since it was made, without the waits for others.

    It stands while any thread of the call is in `waiting_for_others`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began_s = self._changed_s = monotonic()
        self._num_waiting, self._waited_s = 0, 0.0

    @property
    def seconds(self) -> float:
        with self._lock:
            self._advance()
            return self._changed_s - self._began_s - min(self._waited_s, _MOST_WAITING_S)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Where the call runs."""
        token = _own_time.set(self)
        try:
            yield
        finally:
            _own_time.reset(token)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Of one thread; others may stop it meanwhile."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, num_waiting: int) -> None:
        with self._lock:
            self._advance()
            self._num_waiting += num_waiting

    def _advance(self) -> None:
        now_s = monotonic()
        if self._num_waiting:
            self._waited_s += now_s - self._changed_s
        self._changed_s = now_s


_own_time: contextvars.ContextVar[OwnTime | None] = contextvars.ContextVar("own_time", default=None)
