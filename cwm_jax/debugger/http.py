"""A model behind any server that completes prompts of tokens: OpenAI's ``/completions``."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
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
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"server {url!r}; expected a URL, as http://127.0.0.1:8000")
        root = url.rstrip("/")
        self._bases = [root] if root.endswith("/v1") else [root + prefix for prefix in _PREFIXES]
        self._root, self._tokenizer, self._timeout_s = root, tokenizer, timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._left_out: set[str] = set()
        self._model, self._asked_for_model = model, model is not None

    def predict(self, request: PredictionRequest) -> list[int]:
        """As `Predictor.predict`."""
        while True:
            try:
                answer = self._call(f"{self._bases[0]}/completions", self._body(request))
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read(1 << 16).decode("utf-8", "replace")
                if error.code in (404, 405) and len(self._bases) > 1:
                    self._bases = self._bases[1:]  # from now on
                elif (field := self._optional_field(error.code, text)) is not None:
                    self._left_out.add(field)
                else:
                    raise PredictionError(self._refusal(error.code, text, request)) from None
            else:
                return self._tokens(answer, request)

    def _optional_field(self, status: int, text: str) -> str | None:
        """The field that a refusal is about, if the request can do without it."""
        if status not in (400, 422):
            return None
        left = [name for name in _OPTIONAL if name not in self._left_out]
        named = _named_fields(text)
        return next((name for name in left if (name in named if named else name in text)), None)

    def _body(self, request: PredictionRequest) -> bytes:
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
        return json.dumps(body).encode()

    def _model_name(self) -> str | None:
        """The first that the server lists, asked once; None where it lists none."""
        if not self._asked_for_model:
            self._asked_for_model = True
            for base in self._bases:
                try:
                    listed = self._call(f"{base}/models", None)
                    self._model = str(listed["data"][0]["id"])
                    break
                except urllib.error.HTTPError as error:
                    error.close()
                except (PredictionError, LookupError, TypeError):
                    pass  # the completion itself says what is wrong
        return self._model

    def _call(self, url: str, body: bytes | None) -> Any:
        """The JSON of an answer; raises HTTPError for a status that is an error."""
        request = urllib.request.Request(url, data=body, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                content = response.read(_MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError:
            raise
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise PredictionError(self._failure(url, error)) from None
        try:
            if len(content) > _MAX_ANSWER_BYTES:
                raise ValueError(f"more than {_MAX_ANSWER_BYTES} bytes")
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise PredictionError(
                f"{url} answered {content[:60]!r} ({error}); expected JSON of an OpenAI-compatible "
                "server: is the address right?"
            ) from None

    def _failure(self, url: str, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
            return (
                f"{url} did not answer within {self._timeout_s:g} s; is the server busy? `step` "
                "asks again, --timeout allows more"
            )
        return f"{url} cannot be reached: {reason}; is the server running, and the address right?"

    def _refusal(self, status: int, text: str, request: PredictionRequest) -> str:
        """A status that is an error, in plain words, with the next step."""
        said = f"the server answers {status}: {_message(text)}"
        if status in (401, 403):
            return f"{said}; expected a key that it knows: give --api-key"
        is_refused = "allowed" in _named_fields(text) or re.search(r"(?<!not )\ballowed\b", text)
        if request.constraint is not None and status < 500 and is_refused:
            return (
                f"{said}; the constraint of actions is an extension (`allowed`) that it does not "
                "take: go on with --no-constrain"
            )
        if status == 404:
            return f"{said}; expected {self._bases[0]}/completions there: is the address right?"
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


def _message(text: str) -> str:
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
