"""From a generation to a reply: whole, or as server-sent events; ends with its client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cwm_jax.inference.requests import Delta
from cwm_jax.serve.errors import ApiError, internal_error
from cwm_jax.serve.generation import Generation

_LOGGER = logging.getLogger(__name__)
_DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class Answer(Protocol):
    """What an endpoint makes of deltas."""

    def add(self, choice: int, delta: Delta) -> Iterable[BaseModel]:
        """Takes a delta; the chunks to be sent for it, made as they are read."""
        ...

    def opening(self) -> Iterable[BaseModel]:
        """The chunks before the first delta."""
        ...

    def closing(self) -> Iterable[BaseModel]:
        """The chunks after the last delta."""
        ...

    def reply(self) -> BaseModel:
        """All of it."""
        ...


async def respond(
    request: Request, generation: Generation, answer: Answer, *, stream: bool, timeout_s: float
) -> Response:
    """The reply to a request, whose generation ends when its client goes or time is up."""
    if stream:
        return EventStream(generation, answer, timeout_s)
    async with _ending_with_the_client(generation, request.receive):
        async for index, delta in _in_time(generation, timeout_s):
            answer.add(index, delta)  # its chunks are made by who reads them
    if generation.failure is not None:
        raise generation.failure
    return json_response(answer.reply())


def json_response(reply: BaseModel) -> Response:
    return Response(reply.model_dump_json(exclude_unset=True), media_type="application/json")


class EventStream(Response):
    """Server-sent events of a generation; the last is ``[DONE]``, or an error."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, answer: Answer, timeout_s: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._generation, self._answer, self._timeout_s = generation, answer, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _ending_with_the_client(self._generation, receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with contextlib.aclosing(self._events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self._answer.opening():
                yield _event(chunk)
            async with contextlib.aclosing(_in_time(self._generation, self._timeout_s)) as deltas:
                async for index, delta in deltas:
                    if delta.finish_reason in ("cancelled", "error"):
                        continue  # told at the end, as an error
                    chunks = self._answer.add(index, delta)
                    if encoded := b"".join(map(_event, chunks)):
                        yield encoded
            if self._generation.failure is not None:
                raise self._generation.failure
            for chunk in self._answer.closing():
                yield _event(chunk)
            yield _DONE
        except Exception as error:
            if not isinstance(error, ApiError):
                _LOGGER.exception("a stream failed")
                error = internal_error(error)
            yield f"data: {json.dumps(error.reply.model_dump())}\n\n".encode()


def _event(chunk: BaseModel) -> bytes:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n".encode()


async def _in_time(
    generation: Generation, timeout_s: float
) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas; the generation is cancelled when time is up, and so ends."""
    timer = asyncio.get_running_loop().call_later(timeout_s, generation.cancel, "timeout")
    try:
        async with contextlib.aclosing(generation.deltas()) as deltas:
            async for item in deltas:
                yield item
    finally:
        timer.cancel()


@contextlib.asynccontextmanager
async def _ending_with_the_client(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Cancels the generation when its client disconnects, and when the block is left."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel("client")

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        generation.cancel("client")
