"""From a request's fields to the engine's."""

from __future__ import annotations

import math
from typing import Any

from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.inference.requests import Constraint, RequestError, SamplingParams
from cwm_jax.serve.errors import ApiError
from cwm_jax.serve.protocol import MAX_ALLOWED_TOKENS, Allowed, SamplingRequest
from cwm_jax.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # what OpenAI gives for less, and JSON can write


def sampling_params(
    request: SamplingRequest,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    num_logprobs: int = 0,
    constraint: Constraint | None = None,
) -> SamplingParams:
    """OpenAI's defaults where the request says nothing; ends at the model's own stop tokens.

    Raises:
        ApiError: a value that the engine does not take.
    """
    stop = request.stop or ()
    own = () if request.ignore_eos else tokenizer.stop_ids
    given = _ids(request.stop_token_ids or [], tokenizer, "stop_token_ids")
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
            constraint=constraint,
        )
    except RequestError as error:
        raise ApiError(400, str(error), param=error.field, code="invalid_value") from error


def choices_after(allowed: Allowed, tokenizer: Tokenizer) -> ChoicesAfter:
    """The constraint of a completion; raises ApiError for ids that are none, and for too many."""
    num_tokens = sum(map(len, allowed.choices))
    if num_tokens > MAX_ALLOWED_TOKENS:
        raise ApiError(
            400,
            f"allowed.choices has {num_tokens} tokens; expected at most {MAX_ALLOWED_TOKENS}",
            param="allowed.choices",
            code="invalid_value",
        )
    _ids([allowed.after], tokenizer, "allowed.after")
    _ids(allowed.then, tokenizer, "allowed.then")
    for index, choice in enumerate(allowed.choices):
        _ids(choice, tokenizer, f"allowed.choices.{index}")
    return ChoicesAfter(allowed.after, tuple(map(tuple, allowed.choices)), tuple(allowed.then))


def finite_logprob(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB) if not math.isnan(logprob) else MIN_LOGPROB


def _ids(ids: list[int], tokenizer: Tokenizer, param: str) -> list[int]:
    wrong = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
    if wrong is not None:
        raise ApiError(
            400,
            f"{param} has the token id {wrong}; expected 0 to {tokenizer.vocab_size - 1}",
            param=param,
            code="invalid_value",
        )
    return ids


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
