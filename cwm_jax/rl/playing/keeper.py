"""Environments in threads of their own, which nobody has to wait for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cwm_jax.rl.environment import Environment, EnvironmentFailure, Observation, OwnTime, Step

_LOG = logging.getLogger(__name__)


class Keeper:
    """The thread in which one environment is made, called and closed, one after another.

    So closing waits for a call that takes too long, and ends what that has opened meanwhile. The
    thread is a daemon: one that hangs holds up no process' end.
    """

    def __init__(self, make: Callable[[], Environment], timeout_s: float):
        """Has the environment made and started; ``timeout_s``: of each call's own time."""
        self._make, self._timeout_s = make, timeout_s
        self._environment: Environment | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self._thread.start()
        self._ask(self._start)

    def step(self, action: Sequence[int]) -> None:
        """Hands on an action; the call before has been answered."""
        environment = self._environment
        assert environment is not None
        self._ask(lambda: environment.step(action))

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or the time for it is over."""
        return self._call.ended.is_set() or self._call.own_time.seconds >= self._timeout_s

    def wait(self, within_s: float) -> None:
        self._call.ended.wait(within_s)

    def answer(self) -> Observation | Step:
        """Raises what the environment has raised, EnvironmentFailure where it is too late."""
        if not self._call.ended.is_set():
            raise EnvironmentFailure(f"no answer within {self._timeout_s:g} s")
        if self._call.error is not None:
            raise self._call.error
        return self._call.value

    def close(self) -> None:
        """The last that the thread is asked; does not wait for it."""
        self._calls.put(None)

    def is_closed(self, within_s: float = 0.0) -> bool:
        """Whether all is done, after waiting for it."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _ask(self, function: Callable[[], Any]) -> None:
        self._call = _Call(function)
        self._calls.put(self._call)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
        try:
            if self._environment is not None:
                self._environment.close()
        except BaseException:  # its episode has been played: someone has to mend it, no more
            _LOG.exception("%s could not be closed", type(self._environment).__name__)

    def _start(self) -> Observation:
        self._environment = self._make()
        return self._environment.start()


class _Call:
    """A function, and what it returned or raised once it has ended."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self.own_time, self.ended = OwnTime(), threading.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.own_time.kept():
                self.value = self._function()
        except Exception as error:
            self.error = error
        except BaseException as error:  # SystemExit of a library: it ends this call alone
            self.error = RuntimeError(f"{type(error).__name__}: {error}")
        self.ended.set()
