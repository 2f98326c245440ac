"""An engine on a thread of its own, for servers and other threads."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from cwm_jax.config import ModelConfig
from cwm_jax.inference.engine import Engine, EngineStats, check_queue
from cwm_jax.inference.requests import Delta, SamplingParams
from cwm_jax.inference.scheduler import Request
from cwm_jax.model.transformer import Params
from cwm_jax.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


class ServiceClosedError(RuntimeError):
    """The service takes no more requests: it is being closed, or its engine has failed."""


class Stream:
    """What one request gains, as it comes; made by ``EngineService.submit``.

    It is for one reader: ``async for`` in an event loop, or ``for`` in a thread. It ends after the
    delta that has a finish reason.
    """

    def __init__(self, cancel: Callable[[Stream], None]):
        self._cancel = cancel
        self._ready = threading.Condition()
        self._deltas: collections.deque[Delta] = collections.deque()
        self._wake: Callable[[], None] | None = None
        self._ended = False

    def cancel(self) -> None:
        """Ends the request soon, with the finish reason ``cancelled``; again, it does nothing."""
        self._cancel(self)

    def put(self, delta: Delta) -> None:
        """Of the service: gives the reader something."""
        with self._ready:
            self._deltas.append(delta)
            self._ready.notify_all()
            wake = self._wake
        if wake is not None:
            wake()

    def __iter__(self) -> Iterator[Delta]:
        while not self._ended:
            with self._ready:
                self._ready.wait_for(lambda: self._deltas)
                delta = self._deltas.popleft()
            self._ended = delta.finish_reason is not None
            yield delta

    async def __aiter__(self) -> AsyncIterator[Delta]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
                loop.call_soon_threadsafe(arrived.set)

        with self._ready:
            self._wake = wake
        while not self._ended:
            arrived.clear()
            with self._ready:
                delta = self._deltas.popleft() if self._deltas else None
            if delta is None:
                await arrived.wait()
                continue
            self._ended = delta.finish_reason is not None
            yield delta


class EngineService:
    """Runs an engine's steps as long as there is work; its methods are for any thread.

    None of them waits for a step: what they want done lies in an inbox until the engine's thread
    has finished the one that it is at.
    """

    def __init__(self, engine: Engine):
        """Starts the thread; the engine is the service's alone from now on."""
        self._engine = engine
        self._changed = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._num_new = 0  # of requests in the inbox
        self._streams: dict[Request, Stream] = {}
        self._requests: dict[Stream, Request] = {}
        self._updates: list[concurrent.futures.Future[None]] = []
        self._closing = self._stopped = False
        self._stats = engine.stats()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    @property
    def model_config(self) -> ModelConfig:
        return self._engine.model_config

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its continuation."""
        return self._engine.longest

    @property
    def healthy(self) -> bool:
        """Whether it takes requests and answers them."""
        return self.failure is None and not self._closing and self._thread.is_alive()

    def submit(self, prompt: Sequence[int], sampling: SamplingParams) -> Stream:
        """Takes a request in.

        Raises:
            RequestError, QueueFullError: as ``Engine.submit``.
            ServiceClosedError: it is being closed, or its engine has failed.
        """
        request, stream = self._engine.prepare(prompt, sampling), Stream(self._cancel)
        with self._changed:
            self._check_open()
            check_queue(self._stats.num_waiting + self._num_new, self._engine.options)
            self._streams[request], self._requests[stream] = stream, request
            self._num_new += 1
            self._tell(lambda: self._engine.enqueue(request))
        return stream

    def stats(self) -> EngineStats:
        """As of the last step, the requests that have come since among those that wait."""
        with self._changed:
            num_waiting = self._stats.num_waiting + self._num_new
            return dataclasses.replace(self._stats, num_waiting=num_waiting)

    def update_weights(self, params: Params) -> None:
        """``Engine.update_weights`` between two steps; returns when it is done."""
        outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

        def update() -> None:
            try:
                outcome.set_result(self._engine.update_weights(params))
            except Exception as error:  # the caller's: the engine goes on with what it has
                outcome.set_exception(error)

        with self._changed:
            self._check_open()
            self._updates.append(outcome)
            self._tell(update)
        outcome.result()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Takes no more requests, and returns when none is left.

        Args:
            drain: lets those that wait or run finish; else they are cancelled.
            timeout_s: what has not finished by then is cancelled.
        """
        with self._changed:
            self._closing = True
            if drain:
                self._changed.wait_for(lambda: not self._streams, timeout_s)
            for request in self._streams:
                self._tell(functools.partial(self._engine.cancel, request))
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _check_open(self) -> None:
        if self.failure is not None:
            raise ServiceClosedError(
                f"the engine failed ({self.failure!r}); expected a running one: start the service "
                "anew"
            )
        if self._closing:
            raise ServiceClosedError("the service is being closed; send the request to another")

    def _tell(self, job: Callable[[], None]) -> None:
        """For the engine's thread; with the lock held."""
        self._inbox.append(job)
        self._changed.notify_all()

    def _cancel(self, stream: Stream) -> None:
        with self._changed:
            request = self._requests.get(stream)
            if request is not None:
                self._tell(lambda: self._engine.cancel(request))

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as failure:
            _LOG.exception("the engine failed")
            self._fail(failure)

    def _step(self) -> bool:
        """What the inbox has, and one step of the engine, or a wait for work; False at the end."""
        with self._changed:
            idle = not self._engine.has_work
            self._changed.wait_for(lambda: not idle or self._inbox or self._stopped)
            jobs, self._inbox = self._inbox, []
            for job in jobs:
                job()
            self._updates = [update for update in self._updates if not update.done()]
            self._num_new, self._stats = 0, self._engine.stats()
            if not self._engine.has_work:
                return not self._stopped
        deltas = self._engine.step()
        with self._changed:
            self._stats = self._engine.stats()
            for request, delta in deltas:
                self._deliver(request, delta)
        return True

    def _deliver(self, request: Request, delta: Delta) -> None:
        stream = self._streams[request]
        stream.put(delta)
        if delta.finish_reason is not None:
            del self._streams[request], self._requests[stream]
            self._changed.notify_all()

    def _fail(self, failure: BaseException) -> None:
        with self._changed:
            self.failure = failure
            for stream in self._streams.values():
                stream.put(Delta(token_ids=[], text="", logprobs=[], finish_reason="error"))
            for update in self._updates:
                if not update.done():
                    update.set_exception(ServiceClosedError(f"the engine failed: {failure!r}"))
            self._streams.clear()
            self._requests.clear()
            self._changed.notify_all()
