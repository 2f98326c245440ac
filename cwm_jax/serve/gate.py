"""What every HTTP request passes before an endpoint sees it: key, size, time, shutdown."""

from __future__ import annotations

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwm_jax.serve.errors import ApiError, queue_full
from cwm_jax.serve.server import Server

PATHS = ("/chat/completions", "/completions", "/models", "/health", "/metrics")
PREFIX = "/v1"
# Of a body that is too large so much is read and dropped: a client that still sends when the
# connection is closed does not get to read why.
_MAX_DISCARDED_BYTES = 64 * 2**20
_PAGE = "/debugger"
_API = "/debugger/api"


class Gate:
    """Counts requests, and refuses those that nobody should have to read."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, status = self._server.metrics, 500

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._server.num_open += 1
        metrics.open_requests.inc()
        try:
            await self._pass(scope, receive, counting_send)
        finally:
            self._server.num_open -= 1
            metrics.open_requests.dec()
            metrics.responses.labels(_label(scope["path"]), status).inc()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError: a wrong key, a shutdown, too many requests."""
        path = _without_prefix(scope["path"])
        if not (path == "/health" or _is_page(path)):
            self._check_key(scope)
        if path in ("/health", "/metrics"):
            return
        if self._server.is_draining:
            raise ApiError(503, "the server shuts down", code="shutting_down")
        if self._server.num_open > self._server.options.max_open_requests:
            raise queue_full(
                f"{self._server.num_open - 1} requests are open, as many as may; try again later"
            )

    def _check_key(self, scope: Scope) -> None:
        keys = self._server.options.api_keys
        given = _header(scope, b"authorization")
        kind, _, key = given.partition(b" ")
        # All are compared, in a time that does not depend on how much of one is right.
        is_known = [hmac.compare_digest(key.strip(), known.encode()) for known in keys]
        if keys and not (kind.lower() == b"bearer" and any(is_known)):
            raise ApiError(
                401,
                f"the API key is {'wrong' if given else 'missing'}; expected the header "
                "'Authorization: Bearer KEY'",
                param="Authorization",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it, at most so much and in so much time; None: the client has gone."""
        options = self._server.options
        declared = _header(scope, b"content-length")
        if _header(scope, b"expect") and declared.isdigit():  # asks before it sends
            self._check_size(int(declared[:20]))
        body, num_bytes = bytearray(), 0
        most_read = max(options.max_body_bytes, _MAX_DISCARDED_BYTES)
        try:
            async with asyncio.timeout(options.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    num_bytes += len(piece)
                    if num_bytes <= options.max_body_bytes:
                        body += piece
                    if num_bytes > most_read or not message.get("more_body", False):
                        self._check_size(num_bytes)
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408,
                f"{num_bytes} bytes of the body came within {options.body_timeout_s:g} s; expected "
                "all of it",
                code="timeout",
                headers={"Connection": "close"},
            ) from None

    def _check_size(self, num_bytes: int) -> None:
        most = self._server.options.max_body_bytes
        if num_bytes > most:
            raise ApiError(
                413,
                f"the body has {num_bytes} bytes; expected at most {most}",
                param="body",
                code="body_too_large",
                headers={"Connection": "close"},
            )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body, then whatever comes: a disconnect."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _without_prefix(path: str) -> str:
    rest = path.removeprefix(PREFIX)
    return rest if rest.startswith("/") else path


def _is_page(path: str) -> bool:
    """The debugger's page and its files; a browser sends no key for them, its script does."""
    return path == _PAGE or path.startswith(f"{_PAGE}/static/")


def _label(path: str) -> str:
    """Few: every label is kept for good."""
    path = _without_prefix(path)
    if path.startswith(_PAGE):
        return _API if path.startswith(_API) else _PAGE
    return path if path in PATHS else "other"


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
