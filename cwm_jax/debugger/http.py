"""OpenAI-compatible servers over HTTP, and a model behind the ``/completions`` of one."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.debugger.prediction import PredictionError, PredictionRequest
from cwm_jax.tokenizer import FRAME_SEP, Tokenizer

_TIMEOUT_S = 300.0  # assumed: a frame of 2048 tokens on a slow server
_MAX_ANSWER_BYTES = 32 << 20
_PREFIXES = ("/v1", "")
# What vLLM needs to give ids, and special tokens in texts; a server that refuses one is asked again
# without it.
_OPTIONAL: dict[str, Any] = {
    "return_token_ids": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "stop_token_ids": [],
}


class ServerError(RuntimeError):
    """A server that gives no answer, or none that can be read.

    Attributes:
        is_answer: it has answered, and not in JSON.
    """

    def __init__(self, message: str, *, is_answer: bool = False) -> None:
        super().__init__(message)
        self.is_answer = is_answer


class RefusalError(RuntimeError):
    """A status that is an error.

    Attributes:
        status: of HTTP.
        text: the body.
        retry_after: the header of that name.
    """

    def __init__(self, status: int, text: str, retry_after: str | None) -> None:
        super().__init__(f"the server answers {status}: {error_message(text)}")
        self.status, self.text, self.retry_after = status, text, retry_after


class JsonServer:
    """Posts JSON to a server and gives the JSON of its answer; for many threads.

    Args:
        url: with or without ``/v1``: without, both places are tried, once.
        api_key: sent as a bearer token.
        timeout_s: of one answer.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"server {url!r}; expected a URL, as http://127.0.0.1:8000")
        root = url.rstrip("/")
        self._bases = [root] if root.endswith("/v1") else [root + prefix for prefix in _PREFIXES]
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def base(self) -> str:
        """Where its paths begin, as far as it is known."""
        return self._bases[0]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of the answer.

        Raises:
            RefusalError: a status that is an error.
            ServerError: no answer, or none in JSON.
        """
        content = json.dumps(body).encode()
        while True:
            bases = self._bases
            try:
                return self._call(bases[0] + path, content)
            except RefusalError as refusal:
                if refusal.status not in (404, 405) or len(bases) == 1:
                    raise
                self._bases = bases[1:]  # from now on

    def models(self) -> list[dict[str, Any]]:
        """What it lists; nothing where it lists none. Raises as `post`, but for such places."""
        problem: Exception | None = None
        for base in self._bases:
            try:
                listed = self._call(f"{base}/models", None)["data"]
                found = [model for model in listed if isinstance(model["id"], str)]
                self._bases = [base]
                return found
            except (RefusalError, ServerError) as error:
                problem = problem or error
            except (LookupError, TypeError):
                pass
        if isinstance(problem, ServerError) and not problem.is_answer:
            raise problem
        if isinstance(problem, RefusalError) and problem.status in (401, 403):
            raise problem
        return []

    def _call(self, url: str, body: bytes | None) -> Any:
        request = urllib.request.Request(url, data=body, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                content = response.read(_MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(1 << 16).decode("utf-8", "replace")
                raise RefusalError(error.code, text, error.headers.get("Retry-After")) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise ServerError(self._failure(url, error)) from None
        try:
            if len(content) > _MAX_ANSWER_BYTES:
                raise ValueError(f"more than {_MAX_ANSWER_BYTES} bytes")
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"{url} answered {content[:60]!r} ({error}); expected JSON of an OpenAI-compatible "
                "server: is the address right?",
                is_answer=True,
            ) from None

    def _failure(self, url: str, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
            return (
                f"{url} did not answer within {self._timeout_s:g} s; is the server busy? Ask "
                "again, or allow more by --timeout"
            )
        return f"{url} cannot be reached: {reason}; is the server running, and the address right?"


class HttpPredictor:
    """Asks this project's server, the released demo's, vLLM, and others that return token ids.

    Args:
        url: of the server, with or without ``/v1``.
        tokenizer: the model's: prompts go out as its ids.
        api_key: sent as a bearer token.
        model: name to ask for; None takes the first that the server lists, if it lists any.
        timeout_s: of one answer.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._server = JsonServer(url, api_key=api_key, timeout_s=timeout_s)
        self._left_out: set[str] = set()
        self._model, self._asked_for_model = model, model is not None

    def predict(self, request: PredictionRequest) -> list[int]:
        """As `Predictor.predict`."""
        while True:
            try:
                answer = self._server.post("/completions", self._body(request))
            except RefusalError as refusal:
                left = [name for name in _OPTIONAL if name not in self._left_out]
                field = optional_field(refusal, left)
                if field is None:
                    raise PredictionError(self._refusal(refusal, request)) from None
                self._left_out.add(field)
            except ServerError as error:
                raise PredictionError(str(error)) from None
            else:
                return self._tokens(answer, request)

    def _body(self, request: PredictionRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            **{name: value for name, value in _OPTIONAL.items() if name not in self._left_out},
            "prompt": [*request.prompt],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": FRAME_SEP,  # one string: the released server takes no list
        }
        if "stop_token_ids" not in self._left_out:
            body["stop_token_ids"] = [*request.stop_token_ids]
        if request.seed is not None:
            body["seed"] = request.seed
        if (model := self._model_name()) is not None:
            body["model"] = model
        if (constraint := request.constraint) is not None:
            body["allowed"] = {
                "after": constraint.after,
                "choices": [[*choice] for choice in constraint.choices],
                "then": [*constraint.then],
            }
        return body

    def _model_name(self) -> str | None:
        """The first that the server lists, asked once; None where it lists none."""
        if not self._asked_for_model:
            self._asked_for_model = True
            with contextlib.suppress(
                ServerError, RefusalError
            ):  # the completion says what is wrong
                self._model = next((model["id"] for model in self._server.models()), None)
        return self._model

    def _refusal(self, refusal: RefusalError, request: PredictionRequest) -> str:
        """A status that is an error, in plain words, with the next step."""
        said, status, text = str(refusal), refusal.status, refusal.text
        if status in (401, 403):
            return f"{said}; expected a key that it knows: give --api-key"
        is_refused = "allowed" in _named_fields(text) or re.search(r"(?<!not )\ballowed\b", text)
        if request.constraint is not None and status < 500 and is_refused:
            return (
                f"{said}; the constraint of actions is an extension (`allowed`) that it does not "
                "take: go on with --no-constrain"
            )
        if status == 404:
            return f"{said}; expected {self._server.base}/completions there: is the address right?"
        if status >= 500 and request.temperature == 0:
            return f"{said}; some servers divide by the temperature: try --temperature 0.01"
        return said

    def _tokens(self, answer: Any, request: PredictionRequest) -> list[int]:
        try:
            choice = answer["choices"][0]
            ids = self._ids_of(choice)
        except (LookupError, TypeError) as error:
            raise PredictionError(
                f"the server's answer lacks what a completion has ({error!r}): "
                f"{json.dumps(answer)[:200]}; expected choices[0] with the ids of its tokens"
            ) from None
        stops = [n for n, token in enumerate(ids) if token in request.stop_token_ids]
        if stops:
            return ids[: stops[0] + 1]
        if choice.get("finish_reason") == "stop":  # by a token that it leaves out
            return [*ids, request.stop_token_ids[0] if ids else request.stop_token_ids[-1]]
        return ids

    def _ids_of(self, choice: Mapping[str, Any]) -> list[int]:
        for name in ("token_ids", "tokens"):
            ids = choice.get(name)
            if isinstance(ids, list) and all(type(i) is int for i in ids):
                return ids
        raise KeyError("token_ids")


def optional_field(refusal: RefusalError, fields: Sequence[str]) -> str | None:
    """Which of the fields that a request can do without a refusal is about, if it is about one."""
    if refusal.status not in (400, 422):
        return None
    named = _named_fields(refusal.text)
    return next((f for f in fields if (f in named if named else f in refusal.text)), None)


def _named_fields(text: str) -> set[str]:
    """Names of the fields that an error's body is about: OpenAI's ``param``, FastAPI's ``loc``."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    if not isinstance(body, dict):
        return set()
    error = body.get("error", body)
    param = error.get("param") if isinstance(error, dict) else None
    paths = [param.split(".")] if isinstance(param, str) else []
    details = body.get("detail")
    for detail in details if isinstance(details, list) else []:
        paths.append(detail.get("loc", []) if isinstance(detail, dict) else [])
    return {str(part) for path in paths for part in path[:2]}


def error_message(text: str) -> str:
    """What an error's body says: OpenAI's, FastAPI's, or any."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    if isinstance(body, dict) and "message" in body:
        body = body["message"]
    shown = body if isinstance(body, str) else json.dumps(body)
    return " ".join(shown.split())[:300] or "nothing"
