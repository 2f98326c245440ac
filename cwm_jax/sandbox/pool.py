"""Several warm interpreters for many threads."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cwm_jax.sandbox.limits import Limits
from cwm_jax.sandbox.outcome import Reply
from cwm_jax.sandbox.worker import Worker


class Pool:
    """Up to ``size`` workers of one program; a call takes one that is free, or waits for its turn.

    Calls have their turns in the order in which they came, so that a wait ends after the calls
    before it, of which each has its limits.

    Workers are made as calls need them, or ahead by `warm_up`. The one used last is taken first: it
    is still in the caches. A call that hangs, or loses its sandbox, costs no other call more than
    its worker's absence; the sandbox is started again by the worker's next call. After a fork of
    this process each side needs its own pool.

    Args:
        program: as for `Worker`.
        size: how many calls may run at a time.
        readable, limits, unsafe, preload: as for `Worker`.
        waiting: makes what each call enters while it waits for its turn, for who keeps its time.

    Raises:
        ValueError: if the size is not one. What is wrong with the other arguments the first call
            or `warm_up` says, as `Worker` does.
    """

    def __init__(
        self,
        program: Path,
        *,
        size: int,
        readable: Sequence[Path] = (),
        limits: Limits | None = None,
        unsafe: bool = False,
        preload: Sequence[str] = (),
        waiting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"a pool's size is {size!r}; it is a whole number, at least 1: give another"
            )
        self._make = functools.partial(
            Worker, program, readable=readable, limits=limits, unsafe=unsafe, preload=preload
        )
        self._size, self._waiting = size, waiting
        self._change = threading.Condition()
        self._free: list[Worker] = []
        self._queue: list[object] = []  # a token for each call that has no worker yet
        self._num_taken = 0  # by calls, and being made
        self._closed = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self) -> None:
        """Makes all workers, at once, so that no call waits for a start.

        Raises:
            SandboxError: if the sandbox cannot be had.
            ValueError: as `Worker`.
        """
        with self._change:
            self._check_open()
            missing = self._size - self._num_taken - len(self._free)
            self._num_taken += missing
        if not missing:
            return
        with ThreadPoolExecutor(missing) as threads:
            made = [threads.submit(self._make_free) for _ in range(missing)]
        for future in made:
            future.result()

    def call(self, request: bytes, *, stdin: bytes = b"", limits: Limits | None = None) -> Reply:
        """Runs ``handle(request)`` as `Worker.call` does, on a worker that is free.

        Raises:
            SandboxError: if a sandbox had to be started and could not.
            ValueError: if the pool is closed, or as `Worker` and its `call`.
        """
        worker = self._take()
        try:
            worker = worker or self._make()
            return worker.call(request, stdin=stdin, limits=limits)
        finally:
            self._give_back(worker)

    def close(self) -> None:
        """Refuses new calls, waits for those that run, and ends all processes; again, nothing."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._num_taken)
            workers, self._free = self._free, []
        for worker in workers:
            worker.close()

    def _make_free(self) -> None:
        worker = None
        try:
            worker = self._make()
        finally:
            self._give_back(worker)

    def _take(self) -> Worker | None:
        """Returns None where a new worker is to be made."""
        token = object()
        with self._waiting(), self._change:
            self._queue.append(token)
            try:
                self._change.wait_for(lambda: self._closed or self._is_next(token))
                self._check_open()
                self._num_taken += 1
                return self._free.pop() if self._free else None
            finally:
                self._queue.remove(token)
                self._change.notify_all()

    def _is_next(self, token: object) -> bool:
        return self._num_taken < self._size and self._queue[0] is token

    def _give_back(self, worker: Worker | None) -> None:
        with self._change:
            if worker:
                self._free.append(worker)
            self._num_taken -= 1
            self._change.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the pool is closed: make another one, or close it after its calls")
