"""The HTTP application: OpenAI's paths, with and without ``/v1``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from cwm_jax.serve.chat.endpoint import chat
from cwm_jax.serve.completions import complete
from cwm_jax.serve.errors import ApiError, add_error_handlers, documented
from cwm_jax.serve.gate import PREFIX, Gate
from cwm_jax.serve.generation import Service
from cwm_jax.serve.metrics import CONTENT_TYPE
from cwm_jax.serve.options import ServeOptions
from cwm_jax.serve.protocol import ChatRequest, CompletionRequest
from cwm_jax.serve.replies import (
    ChatCompletion,
    Completion,
    Health,
    Model,
    ModelList,
)
from cwm_jax.serve.server import Server
from cwm_jax.serve.streaming import json_response

_EVENTS: dict[str, Any] = {
    "description": "one object, or with `stream` its chunks as server-sent events",
    "content": {"text/event-stream": {}},
}
_GENERATING = documented(400, 401, 404, 408, 413, 415, 429, 503, 504)


def create_app(
    service: Service, options: ServeOptions, *, routers: Sequence[APIRouter] = ()
) -> FastAPI:
    """An application on a running service.

    Args:
        service: an ``EngineService``; whoever made it closes it.
        options: of the HTTP side.
        routers: more pages, such as the debugger's; they pass the same gate.

    Returns:
        The application; its ``state.server`` has what a shutdown needs.
    """
    server = Server(service, options)
    app = FastAPI(title="cwm_jax", docs_url=None, redoc_url=None)
    app.state.server = server
    app.add_middleware(Gate, server=server)
    add_error_handlers(app)
    models, answers, state = _models(server), _answers(server), _state(server)
    app.include_router(models, prefix=PREFIX)
    app.include_router(answers, prefix=PREFIX)
    app.include_router(state)
    # The same without the prefix, or with it: as Meta's server, and for clients that add it.
    app.include_router(models, include_in_schema=False)
    app.include_router(answers, include_in_schema=False)
    app.include_router(state, prefix=PREFIX, include_in_schema=False)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _answers(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/chat/completions", responses={200: {"model": ChatCompletion, **_EVENTS}, **_GENERATING}
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a dialog."""
        return await chat(server, body, request)

    @router.post("/completions", responses={200: {"model": Completion, **_EVENTS}, **_GENERATING})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues texts or token ids."""
        return await complete(server, body, request)

    return router


def _models(server: Server) -> APIRouter:
    router = APIRouter()

    def described(name: str) -> Model:
        return Model(
            id=name,
            object="model",
            created=server.created,
            owned_by="cwm_jax",
            max_model_len=server.service.max_length,
        )

    @router.get("/models", responses={200: {"model": ModelList}, **documented(401, 503)})
    async def models() -> Response:
        """The names under which the model is served."""
        data = [described(name) for name in server.options.model_names]
        return json_response(ModelList(object="list", data=data))

    @router.get("/models/{name:path}", responses={200: {"model": Model}, **documented(401, 404)})
    async def model(name: str) -> Response:
        """One of them."""
        return json_response(described(server.model_name(name)))

    return router


def _state(server: Server) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={200: {"model": Health}, **documented(503)})
    async def health() -> Response:
        """Whether requests are taken; needs no key."""
        if server.is_draining:
            raise ApiError(503, "the server shuts down", code="shutting_down")
        server.check_alive()
        return json_response(Health(status="ok"))

    @router.get(
        "/metrics",
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **documented(401),
        },
        response_class=Response,
    )
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(server.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document without its 422: what is malformed gets 400 here."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
