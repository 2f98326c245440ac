"""What the engine is asked and what it answers; without JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

Constraint = Callable[[Sequence[int]], Collection[int] | None]
"""Given the tokens generated so far, the ids of which the next must be one; None allows any."""

FinishReason = Literal["stop", "length", "cancelled", "error"]

MAX_STOP_TOKENS = 16  # assumed: of a request; the step looks for them on the device
MAX_LOGPROBS = 20  # OpenAI's limit
_MAX_TEMPERATURE = 1e6  # assumed: draws are uniform long before, and float32 ends at 3e38


class RequestError(ValueError):
    """A request that can never be served.

    Attributes:
        field: the name of what is wrong: one of ``SamplingParams``, or ``prompt``.
    """

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class QueueFullError(RuntimeError):
    """As many requests wait as may; try again later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is continued.

    The filters apply in the order top_k, top_p, min_p, to the distribution at ``temperature``.

    Attributes:
        max_tokens: at most so many; less where the engine's longest row ends.
        temperature: divides the logits; 0 takes the most likely token, whatever the filters.
        top_k: draws only from the k most likely tokens; 0 is all.
        top_p: draws only from the fewest most likely tokens with this probability in sum.
        min_p: leaves out tokens less likely than this share of the most likely one's probability.
        seed: of the draws: equal seeds and prompts give equal tokens, whatever runs beside them;
            None takes one that differs from request to request.
        stop_token_ids: each ends the continuation; it is its last token, and not in its text.
        stop: likewise strings: the text ends before the first occurrence, the tokens with the one
            that completes it.
        num_logprobs: alternatives given for each token, most likely first.
        constraint: restricts the next token; see ``cwm_jax.inference.constraints``.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    num_logprobs: int = 0
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self._check("max_tokens", self.max_tokens >= 1, "1 or more")
        fits = 0 <= self.temperature <= _MAX_TEMPERATURE
        self._check("temperature", fits, f"0 (greedy) to {_MAX_TEMPERATURE:g}")
        self._check("top_k", 0 <= self.top_k < 2**31, "0 (all) to 2**31 - 1")
        self._check(
            "top_p",
            0 < self.top_p <= 1,
            "above 0 and at most 1 (all tokens): for the most likely token give temperature=0",
        )
        self._check("min_p", 0 <= self.min_p <= 1, "0 to 1")
        seed_fits = self.seed is None or -(2**63) <= self.seed < 2**63
        self._check("seed", seed_fits, "None or a 64 bit integer")
        few = len(self.stop_token_ids) <= MAX_STOP_TOKENS
        self._check("stop_token_ids", few, f"at most {MAX_STOP_TOKENS} tokens")
        self._check("stop", all(self.stop), "strings that are not empty")
        logprobs_fit = 0 <= self.num_logprobs <= MAX_LOGPROBS
        self._check("num_logprobs", logprobs_fit, f"0 to {MAX_LOGPROBS}")

    def _check(self, field: str, fits: bool, expected: str) -> None:
        if not fits:
            raise RequestError(field, f"{field} is {getattr(self, field)}; expected {expected}")


class TokenLogprob(NamedTuple):
    """Of one generated token, under the model at temperature 1 and without filters, in nats."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """``num_logprobs`` alternatives, most likely first, the token itself among them if it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """What a request gained since the last one.

    Attributes:
        token_ids: generated, the one that stopped it included.
        text: theirs as far as it is certain: whole characters, and nothing that may turn out to
            begin a stop string. The texts of all deltas together are the answer.
        logprobs: of each token.
        finish_reason: None while it goes on; ``stop`` by a token or string, ``length`` by a limit,
            ``cancelled`` on demand, ``error`` by a failure of the engine.
        num_cached_tokens: of the prompt, taken from earlier requests with the same beginning.
    """

    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
