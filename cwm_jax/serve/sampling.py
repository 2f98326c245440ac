"""From a request's fields to the engine's."""

from __future__ import annotations

import math
from typing import Any

from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.inference.requests import RequestError, SamplingParams
from cwm_jax.serve.errors import ApiError
from cwm_jax.serve.protocol import MAX_ALLOWED_TOKENS, Allowed, SamplingRequest
from cwm_jax.serve.server import Server
from cwm_jax.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # what OpenAI gives for less, and JSON can write


def sampling_params(
    request: SamplingRequest,
    server: Server,
    *,
    max_tokens: int,
    num_logprobs: int = 0,
) -> SamplingParams:
    """OpenAI's defaults where the request says nothing; ends at the model's own stop tokens.

    Raises:
        ApiError: a value that the engine does not take.
    """
    stop = request.stop or ()
    own = () if request.ignore_eos else server.tokenizer.stop_ids
    given = _ids(request.stop_token_ids or [], server, "stop_token_ids")
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(request.temperature, 1.0),
            top_p=_or(request.top_p, 1.0),
            top_k=max(0, request.top_k or 0),
            min_p=_or(request.min_p, 0.0),
            seed=request.seed,
            stop_token_ids=tuple(dict.fromkeys([*own, *given])),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            num_logprobs=num_logprobs,
        )
    except RequestError as error:
        raise ApiError(400, str(error), param=error.field, code="invalid_value") from error


def choices_after(allowed: Allowed, server: Server) -> ChoicesAfter:
    """The constraint of a completion; raises ApiError for ids that are none, and for too many."""
    num_tokens = sum(map(len, allowed.choices))
    if num_tokens > MAX_ALLOWED_TOKENS:
        raise ApiError(
            400,
            f"allowed.choices has {num_tokens} tokens; expected at most {MAX_ALLOWED_TOKENS}",
            param="allowed.choices",
            code="invalid_value",
        )
    _ids([allowed.after], server, "allowed.after")
    _ids(allowed.then, server, "allowed.then")
    for index, choice in enumerate(allowed.choices):
        _ids(choice, server, f"allowed.choices.{index}")
    return ChoicesAfter(allowed.after, tuple(map(tuple, allowed.choices)), tuple(allowed.then))


def token_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """Of one token, a special one by its name; a model may have ids beyond its tokenizer's."""
    return tokenizer.decode_bytes([token_id]) if token_id < tokenizer.vocab_size else b""


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    """Its text; of one that is no whole characters the bytes, as OpenAI spells them."""
    spelled = token_bytes(token_id, tokenizer)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def finite_logprob(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB) if not math.isnan(logprob) else MIN_LOGPROB


def _ids(ids: list[int], server: Server, param: str) -> list[int]:
    vocab_size = server.service.model_config.vocab_size
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise ApiError(
            400,
            f"{param} has the token id {wrong}; expected 0 to {vocab_size - 1}",
            param=param,
            code="invalid_value",
        )
    return ids


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
