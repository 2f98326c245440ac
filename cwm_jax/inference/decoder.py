"""Batched decoding with a KV cache: prompts wait for a row, and rows decode together.

The host looks at the rows once in a chunk of steps: it collects their tokens and gives the rows of
finished prompts to waiting ones. Programs are compiled for shapes rounded up to few sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.choice import make_choice
from cwm_jax.inference.rows import CHUNK_STEPS, Chunk, Prompts, admit, decode_chunk, init_rows
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params

_LEAST_TOKENS = 64  # assumed: prompts are padded to it at least, and doublings of it
_LEAST_KEYS = 128  # assumed: likewise the slots of the cache that are read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What follows one prompt.

    Attributes:
        tokens: generated, the stop token included.
        finished: it ends with a stop token; else a limit of length cut it.
        logprobs: of each token under the model at temperature 1, in nats.
    """

    tokens: list[int]
    finished: bool
    logprobs: list[float]


class Decoder:
    """Continues prompts, ``batch_size`` at a time; decoders of equal shapes share programs."""

    def __init__(
        self,
        params: Params,
        model_config: ModelConfig,
        *,
        max_length: int,
        batch_size: int,
        execution: ExecutionConfig = DEFAULT_EXECUTION,
    ):
        """Checks the sizes; the cache is made for each call of ``generate``.

        Args:
            params: as from ``init`` or ``convert.load_hf``.
            model_config: the architecture.
            max_length: of a prompt and its continuation together, in tokens.
            batch_size: rows that decode together; the cache holds batch_size * max_length tokens.
            execution: speed and rounding; the cache has its dtype.

        Raises:
            ValueError: no row, or a length that the model is not meant for.
        """
        longest = model_config.max_position_embeddings
        if not 2 <= max_length <= longest:
            raise ValueError(
                f"max_length is {max_length}; expected 2 to {longest}, the model's "
                "max_position_embeddings: lower it, or take a model of longer context"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 row or more: raise it")
        if execution.dtype is not None:  # once, instead of at each step
            params = jax.tree.map(lambda x: x.astype(execution.dtype), params)
        self._params = params
        self._model_config = model_config
        self._max_length = max_length
        self._batch_size = batch_size
        self._execution = execution

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        key: jax.Array | None = None,
    ) -> list[Generation]:
        """Continues each prompt until a stop token, ``max_new_tokens`` or ``max_length``.

        Args:
            prompts: any number of them, each of one token id at least.
            max_new_tokens: of each continuation.
            stop_ids: tokens that end a continuation; without any, all run to a limit.
            temperature: divides the logits; 0 takes the most likely token.
            top_p: draws only from the fewest most likely tokens with this probability in sum.
            key: a JAX random key for draws. A draw depends on it, on the index of the prompt and on
                the position, not on what decodes beside it.

        Returns:
            The continuations in the order of the prompts.

        Raises:
            ValueError: an empty or too long prompt, a token that the model does not have, a setting
                out of its range, a temperature without key.
        """
        choice = make_choice(temperature, top_p, key)
        stops = self._stops(stop_ids)
        self._check_prompts(prompts, max_new_tokens)
        static = {"model_config": self._model_config, "execution": self._execution}
        queue = _Queue(prompts, self._batch_size, max_new_tokens, self._max_length)
        rows = init_rows(
            self._model_config, self._batch_size, self._max_length, dtype=self._cache_dtype()
        )
        while queue.unfinished:
            admitted = queue.admit()
            if admitted is not None:
                rows = admit(self._params, rows, admitted, **static)
            num_keys = _bucket(queue.most_tokens + CHUNK_STEPS, _LEAST_KEYS, self._max_length)
            rows, chunk = decode_chunk(
                self._params, rows, choice, jnp.asarray(stops), num_keys=num_keys, **static
            )
            queue.collect(jax.device_get(chunk))
        return [
            Generation(tokens=tokens, finished=bool(stops[tokens[-1]]), logprobs=logprobs)
            for tokens, logprobs in zip(queue.tokens, queue.logprobs, strict=True)
        ]

    def _cache_dtype(self) -> str:
        return str(self._params["embed_tokens"]["embedding"].dtype)

    def _stops(self, stop_ids: Collection[int]) -> np.ndarray:
        """Bool ``[V]``: of one shape, whatever their number."""
        V = self._model_config.vocab_size
        _check_ids(stop_ids, V, "stop_ids")
        stops = np.zeros(V, bool)
        stops[list(stop_ids)] = True
        return stops

    def _check_prompts(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; expected 1 or more: raise it")
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self._max_length:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens; expected 1 to "
                    f"{self._max_length - 1}, one less than max_length: "
                    + ("begin it with bos" if len(prompt) == 0 else "cut it or raise max_length")
                )
            _check_ids(prompt, self._model_config.vocab_size, f"prompt {number}")


class _Queue:
    """On the host: which prompt has which row, and what came out."""

    def __init__(self, prompts, batch_size: int, max_new_tokens: int, max_length: int):
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self._prompts = prompts
        self._limits = [min(len(prompt) + max_new_tokens, max_length) for prompt in prompts]
        self._max_length = max_length
        self._row_prompts: list[int | None] = [None] * batch_size
        self._num_admitted = 0

    @property
    def unfinished(self) -> bool:
        return self._num_admitted < len(self._prompts) or bool(self._running())

    @property
    def most_tokens(self) -> int:
        """In a row, its prompt included."""
        return max(len(self._prompts[n]) + len(self.tokens[n]) for _, n in self._running())

    def _running(self) -> list[tuple[int, int]]:
        return [(row, n) for row, n in enumerate(self._row_prompts) if n is not None]

    def admit(self) -> Prompts | None:
        """Takes waiting prompts, once a quarter of the rows (or one for each of them) is free."""
        free = [row for row, number in enumerate(self._row_prompts) if number is None]
        waiting = range(self._num_admitted, len(self._prompts))
        enough = -(-len(self._row_prompts) // 4)
        if not waiting or len(free) < min(len(waiting), enough):
            return None
        taken = list(zip(free, waiting, strict=False))
        self._num_admitted += len(taken)
        for row, number in taken:
            self._row_prompts[row] = number
        return self._padded(taken, _bucket(len(taken), enough, len(self._row_prompts)))

    def _padded(self, taken: list[tuple[int, int]], P: int) -> Prompts:
        longest = max(len(self._prompts[number]) for _, number in taken) - 1
        T = _bucket(longest, _LEAST_TOKENS, self._max_length)
        tokens = np.zeros((P, T), np.int32)
        last_tokens, lengths, limits, numbers = np.zeros((4, P), np.int32)
        rows = len(self._row_prompts) + np.arange(P, dtype=np.int32)
        for i, (row, number) in enumerate(taken):
            *before, last_tokens[i] = self._prompts[number]
            tokens[i, : len(before)] = before
            lengths[i], limits[i] = len(before), self._limits[number]
            numbers[i], rows[i] = number, row
        return Prompts(*map(jnp.asarray, (tokens, last_tokens, lengths, rows, limits, numbers)))

    def collect(self, chunk: Chunk) -> None:
        """Takes in what a chunk made, and frees the rows that ended."""
        for row, number in self._running():
            count = chunk.counts[row]
            self.tokens[number] += chunk.tokens[:count, row].tolist()
            self.logprobs[number] += chunk.logprobs[:count, row].tolist()
            if not chunk.active[row]:
                self._row_prompts[row] = None


def _bucket(size: int, least: int, most: int) -> int:
    """``size`` rounded up to a doubling of ``least``, but not past ``most``."""
    while least < size:
        least *= 2
    return min(least, most)


def _check_ids(ids: Collection[int], vocab_size: int, what: str) -> None:
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:  # JAX would clamp it silently
        raise ValueError(
            f"{what} has token {wrong[0]}; expected 0 to {vocab_size - 1}: encode with the model's "
            "tokenizer"
        )
