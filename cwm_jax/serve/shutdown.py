"""A uvicorn server that finishes what runs: on SIGTERM or SIGINT it drains, on a second it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cwm_jax.inference.service import EngineService

_LOGGER = logging.getLogger("uvicorn.error")
_POLL_S = 0.05
_LAST_REPLIES_S = 5  # for those that were cut to be told so


class DrainingServer(uvicorn.Server):
    """Refuses new requests with 503 while running ones have ``drain_timeout_s`` to finish."""

    def __init__(
        self, app: FastAPI, service: EngineService, *, host: str, port: int, drain_timeout_s: float
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,  # the metrics count; a line for each request costs more than a token
            timeout_graceful_shutdown=_LAST_REPLIES_S,
            server_header=False,
        )
        super().__init__(config)
        self._state, self._service = app.state.server, service
        self._drain_timeout_s = drain_timeout_s
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets=None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    @property
    def port(self) -> int:
        """That it listens at, once it has started."""
        return self.servers[0].sockets[0].getsockname()[1]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second ends at once. Neither is raised again afterwards."""
        if self._state.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._state.is_draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        _LOGGER.info("Draining: %d requests are open", self._state.num_open)
        end_s = time.monotonic() + self._drain_timeout_s
        while self._state.num_open and time.monotonic() < end_s:
            await asyncio.sleep(_POLL_S)
        if self._state.num_open:
            _LOGGER.warning("%d requests are cut after draining", self._state.num_open)
        await asyncio.to_thread(self._service.close, drain=False)
        self.should_exit = True
