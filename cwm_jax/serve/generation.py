"""The continuations that one HTTP request asked for, as one sequence of deltas."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from cwm_jax.config import ModelConfig
from cwm_jax.inference.requests import (
    Constraint,
    Delta,
    QueueFullError,
    RequestError,
    SamplingParams,
)
from cwm_jax.serve.errors import ApiError, queue_full
from cwm_jax.serve.metrics import Metrics
from cwm_jax.serve.replies import PromptTokensDetails, Usage
from cwm_jax.tokenizer import Tokenizer


class Stream(Protocol):
    """One request in the engine."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def cancel(self) -> None: ...


class Service(Protocol):
    """What of ``cwm_jax.inference.service.EngineService`` the server uses."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def max_length(self) -> int: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def failure(self) -> BaseException | None: ...

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, /) -> Stream: ...

    def stats(self) -> object: ...


_Item = tuple[int, Delta | BaseException | None]  # None: that choice is through
_WAKE: _Item = (-1, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Prompts, each continued ``n`` times.

    Attributes:
        endpoint: the name under which it is counted.
        prompts: token ids.
        n: continuations of each.
        sampling: of the first continuation of each prompt; the others have the seeds that follow.
        make_constraint: called for each continuation, where one may remember something.
        fields: the request's names for those of the engine.
    """

    endpoint: str
    prompts: Sequence[Sequence[int]]
    n: int
    sampling: SamplingParams
    fields: Mapping[str, str]
    make_constraint: Callable[[], Constraint] | None = None

    def sampling_of(self, choice: int) -> SamplingParams:
        seed, make = self.sampling.seed, self.make_constraint
        if seed is not None:  # around the ends of 64 bits, and never the same twice
            seed = (seed + choice + 2**63) % 2**64 - 2**63
        return dataclasses.replace(self.sampling, seed=seed, constraint=make and make())


class Generation:
    """Admitted continuations; `cancel` frees their rows, and iterating ends in any case.

    Attributes:
        failure: why it ended without an answer, once `deltas` is through; None: all is well.
        ended_by: ``client`` or ``timeout`` where the server cancelled it.
    """

    def __init__(self, service: Service, job: Job, metrics: Metrics) -> None:
        """Submits all of it, or nothing.

        Raises:
            ApiError: it can never be served (400), not now (429) or not any more (503).
        """
        self.job, self.failure, self.ended_by = job, None, None
        self._service, self._metrics = service, metrics
        self._started_s = time.monotonic()
        self._num_generated = [0] * (len(job.prompts) * job.n)
        self._num_cached = [0] * len(job.prompts)
        self._first_s: dict[int, float] = {}
        self._finish_reasons: set[str] = set()
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._streams: list[Stream] = []
        try:
            for prompt in job.prompts:
                for choice in range(job.n):
                    self._streams.append(service.submit(prompt, job.sampling_of(choice)))
        except Exception as error:
            self.cancel("refused")
            raise _api_error(error, job, service) from error

    def cancel(self, ended_by: str) -> None:
        """Ends what still runs, at once for its reader; the first reason is kept."""
        self.ended_by = self.ended_by or ended_by
        for stream in self._streams:
            stream.cancel()
        self._queue.put_nowait(_WAKE)  # the engine may be busy, or stuck

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice, delta) as they come, each choice up to the delta with its finish_reason.

        Close it (``contextlib.aclosing``) where it may be left early.
        """
        pumps = [
            asyncio.create_task(_pump(index, stream, self._queue.put_nowait))
            for index, stream in enumerate(self._streams)
        ]
        num_open = len(pumps)
        try:
            while num_open and self.ended_by is None:
                index, delta = await self._queue.get()
                if isinstance(delta, BaseException):
                    raise delta
                if delta is not None:
                    self._count(index, delta)
                    yield index, delta
                elif index >= 0:
                    num_open -= 1
            self._finish(is_whole=num_open == 0)
        except BaseException:
            self.cancel("error")
            self._finish(is_whole=False)
            raise
        finally:
            for pump in pumps:
                pump.cancel()

    @property
    def usage(self) -> Usage:
        prompt_tokens = sum(map(len, self.job.prompts))
        completion_tokens = sum(self._num_generated)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._num_cached)),
        )

    def _count(self, index: int, delta: Delta) -> None:
        now_s = time.monotonic()
        prompt = index // self.job.n
        self._num_cached[prompt] = max(self._num_cached[prompt], delta.num_cached_tokens)
        if delta.token_ids and index not in self._first_s:
            self._first_s[index] = now_s
            self._metrics.first_token_s.observe(now_s - self._started_s)
        self._num_generated[index] += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._finish_reasons.add(delta.finish_reason)
            following = self._num_generated[index] - 1
            if following > 0:
                self._metrics.token_s.observe((now_s - self._first_s[index]) / following)

    def _finish(self, *, is_whole: bool) -> None:
        """Decides how it ended, and counts that."""
        outcome = "answered"
        if not is_whole or self._finish_reasons & {"error", "cancelled"}:
            by_engine = "error" if "error" in self._finish_reasons else "shutdown"
            outcome = self.ended_by or by_engine
            self.failure = self._failure(outcome)
        self._metrics.outcomes.labels(self.job.endpoint, outcome).inc()
        self._metrics.request_s.observe(time.monotonic() - self._started_s)

    def _failure(self, outcome: str) -> ApiError:
        if outcome == "timeout":
            return ApiError(
                504,
                f"not finished after {time.monotonic() - self._started_s:.1f} s, "
                f"{sum(self._num_generated)} tokens generated; ask for fewer with max_tokens",
                code="timeout",
            )
        if outcome == "client":  # nobody reads it; the status is nginx's for the log
            return ApiError(499, "the client has gone")
        if outcome == "shutdown":
            return ApiError(503, "ended by the server's shutdown", code="shutting_down")
        return ApiError(503, "the engine failed while it answered", code="engine_failed")


async def _pump(index: int, stream: Stream, put: Callable[[_Item], None]) -> None:
    """Puts its deltas, then None; or what it raised."""
    try:
        async for delta in stream:
            put((index, delta))
        put((index, None))
    except Exception as error:
        put((index, error))


def _api_error(error: Exception, job: Job, service: Service) -> Exception:
    if isinstance(error, RequestError):
        param = job.fields.get(error.field, error.field)
        is_long = error.field == "prompt" and max(map(len, job.prompts)) >= service.max_length
        code = "context_length_exceeded" if is_long else "invalid_value"
        message = str(error) if param in str(error) else f"{param}: {error}"
        return ApiError(400, message, param=param, code=code)
    if isinstance(error, QueueFullError):
        return queue_full(str(error))
    if isinstance(error, RuntimeError):  # closed, or its loop has died
        return ApiError(503, str(error), code="unavailable")
    return error
