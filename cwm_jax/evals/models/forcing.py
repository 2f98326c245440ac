"""How likely given continuations are: what threads ask for is computed together.

Each sequence has a row of its own, of the shortest of few lengths that holds it, in a batch of as
many rows as that length always has: so its numbers are the same whoever asks beside it, and there
is one program for each length.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Sequence

import jax
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.evals.problem import Likelihood
from cwm_jax.inference.scoring import score
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params

_SHORTEST_ROW = 512  # assumed: rows are of this, doubled until a sequence fits
_BATCH_TOKENS = 4096  # assumed: of all rows; a longer sequence is alone


@dataclasses.dataclass(eq=False)
class _Request:
    """A sequence, and its reply once it has been computed."""

    tokens: np.ndarray  # the prompt and what follows it
    num_prompt_tokens: int
    reply: Likelihood | BaseException | None = None

    @property
    def row_length(self) -> int:
        return max(_SHORTEST_ROW, 1 << (len(self.tokens) - 2).bit_length())


class ForcedScorer:
    """Teacher forcing for many threads, without a thread of its own.

    Args:
        params: as from ``init`` or ``load_pretrained``, quantized ones too.
        model_config: the architecture.
        max_length: tokens of a prompt and its continuation.
        execution: speed and rounding.
    """

    def __init__(
        self,
        params: Params,
        model_config: ModelConfig,
        *,
        max_length: int,
        execution: ExecutionConfig = DEFAULT_EXECUTION,
    ) -> None:
        self._params, self._max_length = params, max_length
        self._score = jax.jit(
            functools.partial(score, model_config=model_config, execution=execution)
        )
        self._waiting: list[_Request] = []
        self._inbox, self._device = threading.Lock(), threading.Lock()

    def likelihood(self, prompt: Sequence[int], given: Sequence[int]) -> Likelihood:
        """Of a continuation, each of its tokens after the true ones before it.

        Args:
            prompt: one token or more.
            given: what follows; one token or more.

        Raises:
            JaxRuntimeError: the device failed, in a batch that this sequence was in.
        """
        assert len(prompt) and len(given) and len(prompt) + len(given) <= self._max_length
        tokens = np.concatenate([np.asarray(part, np.int32) for part in (prompt, given)])
        request = _Request(tokens, len(prompt))
        with self._inbox:
            self._waiting.append(request)
        with self._device:  # who has it computes what others wait for, too
            while request.reply is None:
                self._run(self._taken())
        if isinstance(request.reply, BaseException):
            raise request.reply
        return request.reply

    def _taken(self) -> list[_Request]:
        """The first, and the next ones of its length, as many as a batch has rows."""
        with self._inbox:
            T = self._waiting[0].row_length
            alike = [request for request in self._waiting if request.row_length == T]
            taken = alike[: _num_rows(T)]
            self._waiting = [request for request in self._waiting if request not in taken]
        return taken

    def _run(self, requests: Sequence[_Request]) -> None:
        try:
            self._reply(requests)
        except BaseException as error:
            for request in requests:
                request.reply = error

    def _reply(self, requests: Sequence[_Request]) -> None:
        T = requests[0].row_length
        tokens = np.zeros((_num_rows(T), T + 1), np.int32)
        segment_ids = np.zeros((_num_rows(T), T), np.int32)
        for row, request in enumerate(requests):
            tokens[row, : len(request.tokens)] = request.tokens
            segment_ids[row, : len(request.tokens) - 1] = 1
        targets = tokens[:, 1:]
        scores = self._score(
            self._params, tokens=tokens[:, :-1], targets=targets, segment_ids=segment_ids
        )
        logprobs, hits = np.asarray(scores.logprobs), np.asarray(scores.predictions) == targets
        for row, request in enumerate(requests):
            counted = slice(request.num_prompt_tokens - 1, len(request.tokens) - 1)
            request.reply = Likelihood(
                logprobs=logprobs[row, counted].tolist(), likeliest=hits[row, counted].tolist()
            )


def _num_rows(row_length: int) -> int:
    return max(1, _BATCH_TOKENS // row_length)
