"""What a debugger asks of a model: the tokens that continue a trace up to the end of its frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from cwm_jax.inference.constraints import ChoicesAfter


class PredictionError(RuntimeError):
    """A prediction that did not come, or cannot be read; the session goes on without it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionRequest:
    """One continuation.

    Attributes:
        prompt: tokens of the context, the frames so far, and of an event that is forced.
        max_tokens: at most so many.
        stop_token_ids: each ends the continuation and is its last token.
        temperature, top_p, seed: as of ``SamplingParams``.
        constraint: what actions may be; None allows any.
    """

    prompt: Sequence[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int | None = None
    constraint: ChoicesAfter | None = None


class Predictor(Protocol):
    """A model, wherever it runs."""

    def predict(self, request: PredictionRequest) -> list[int]:
        """The tokens that follow the prompt, with the stop token that ended them.

        Raises:
            PredictionError: there are none; in plain words, with the next step.
        """
        ...
