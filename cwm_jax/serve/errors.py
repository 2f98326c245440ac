"""What a client is told when a request is not served: OpenAI's error JSON, the field named."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

_LOGGER = logging.getLogger(__name__)
_MAX_SHOWN = 80  # characters of what was got
RETRY_AFTER_S = 1

# Of a status: OpenAI's type, and what it stands for here.
_TYPES = {
    400: ("invalid_request_error", "the request is malformed or asks for what is not supported"),
    401: ("authentication_error", "the API key is missing or wrong"),
    403: ("permission_error", "the page or its path is not for this request"),
    404: ("not_found_error", "no such path or model"),
    405: ("invalid_request_error", "the path takes another method"),
    408: ("timeout_error", "the request's body did not come in time"),
    409: ("invalid_request_error", "something runs that must end first"),
    413: ("invalid_request_error", "the request's body is too large"),
    415: ("invalid_request_error", "the body is not declared as JSON"),
    422: ("invalid_request_error", "the values are of the right types and cannot be used"),
    429: ("rate_limit_error", "too many requests wait; try again after the header's seconds"),
    503: ("server_error", "the server shuts down or its engine has failed"),
    504: ("timeout_error", "the answer was not finished in time"),
}


class ErrorDetail(BaseModel):
    """OpenAI's error; ``param`` is the path of the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every reply that is no answer."""

    error: ErrorDetail


class ApiError(Exception):
    """Ends a request with a status and OpenAI's error JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def reply(self) -> ErrorReply:
        kind = _TYPES.get(self.status, ("server_error",))[0]
        return ErrorReply(
            error=ErrorDetail(message=str(self), type=kind, param=self.param, code=self.code)
        )

    def response(self) -> Response:
        return Response(
            json.dumps(self.reply.model_dump()),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


def queue_full(message: str) -> ApiError:
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: replies of those statuses."""
    return {status: {"model": ErrorReply, "description": _TYPES[status][1]} for status in statuses}


def add_error_handlers(app: FastAPI) -> None:
    """Every error of the app has the one form."""

    @app.exception_handler(ApiError)
    async def _(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        return _from_validation(request, error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        message = error.detail
        if error.status_code in (404, 405):
            message = f"{request.method} {request.url.path}: {message}; see /openapi.json"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:
        # Starlette raises it again after the reply, and the server logs it.
        return internal_error(error).response()


def internal_error(error: BaseException) -> ApiError:
    """What is told of a bug; the rest is in the log."""
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


def _from_validation(request: Request, errors: Sequence[Mapping[str, Any]]) -> ApiError:
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if not (kind.startswith("application/") and kind.endswith(("/json", "+json"))):
        return ApiError(
            415,
            f"Content-Type is {content_type[:_MAX_SHOWN]!r}; expected application/json",
            param="Content-Type",
        )
    error = errors[0]
    if error["type"] == "json_invalid":
        at = f"at character {error['loc'][-1]}"
        return ApiError(400, f"the body is no JSON: {error['ctx']['error']} {at}", param="body")
    param = _param(error["loc"])
    return ApiError(400, f"{param}: {_problem(error)}", param=param, code=_code(error))


def _param(location: Sequence[str | int]) -> str:
    """``messages.0.content``; names of alternatives, which begin with ``~``, are no fields."""
    fields = [str(part) for part in location[1:] if not str(part).startswith("~")]
    return ".".join(fields) or "body"


def _problem(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"no such field{_nearest(error)}"
    if error["type"] == "missing":
        return "missing; it is required"
    if error["type"] == "unsupported":
        return error["msg"]
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{message}; got {_shown(error['input'])}"


def _nearest(error: Mapping[str, Any]) -> str:
    known = (error.get("ctx") or {}).get("known", ())
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    return f"; the nearest is {near[0]!r}" if near else "; leave it out"


def _code(error: Mapping[str, Any]) -> str:
    codes: dict[str, Literal["unknown_parameter", "unsupported_parameter"]] = {
        "extra_forbidden": "unknown_parameter",
        "unsupported": "unsupported_parameter",
    }
    return codes.get(error["type"], "invalid_value")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value) if len(str(value)) <= _MAX_SHOWN else f"{str(value)[:_MAX_SHOWN]!r}..."
    return text
