"""Continuations of many prompts at once: the engine for those who wait for all of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.requests import RequestError, SamplingParams
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params

_DECODE_STEPS = 32  # assumed: nobody waits for the single tokens


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
        """Checks the sizes and allocates the cache.

        Args:
            params: as from ``init`` or ``convert.load_hf``.
            model_config: the architecture.
            max_length: of a prompt and its continuation together, in tokens.
            batch_size: rows that decode together; the cache holds batch_size * max_length tokens.
            execution: speed and rounding; the cache has its dtype.

        Raises:
            ValueError: no row, or a length that the model is not meant for.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 row or more: raise it")
        options = EngineOptions(
            max_length=max_length,
            max_rows=batch_size,
            decode_steps=_DECODE_STEPS,
            max_waiting=sys.maxsize,
        )
        self._engine = Engine(params, model_config, None, options, execution=execution)

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
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; expected 1 or more: raise it")
        sampling = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop_token_ids=tuple(stop_ids),
        )
        for number, prompt in enumerate(prompts):  # all before the first is computed
            try:
                self._engine.check(prompt, sampling)
            except RequestError as error:
                raise ValueError(f"prompt {number}: {error}") from error
        keys = _keys(key, temperature, len(prompts))
        requests = [
            self._engine.submit(prompt, sampling, key=words)
            for prompt, words in zip(prompts, keys, strict=True)
        ]
        made = {request: Generation(tokens=[], finished=False, logprobs=[]) for request in requests}
        try:
            while self._engine.has_work:
                for request, delta in self._engine.step():
                    made[request].tokens.extend(delta.token_ids)
                    made[request].logprobs.extend(token.logprob for token in delta.logprobs)
                    if delta.finish_reason == "stop":
                        made[request] = dataclasses.replace(made[request], finished=True)
        except BaseException:  # an interrupt, too: the next call finds an empty engine
            for request in requests:
                self._engine.cancel(request)
            self._engine.step()
            raise
        return [made[request] for request in requests]


def _keys(key: jax.Array | None, temperature: float, count: int) -> np.ndarray:
    """Two words for the draws of each prompt."""
    if key is None:
        if temperature > 0:
            raise ValueError(
                f"temperature is {temperature} and key is None; expected a JAX random key to draw "
                "with: give key=jax.random.key(seed), or temperature=0"
            )
        return np.zeros((count, 2), np.uint32)

    def words(number):
        return jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32)

    return np.asarray(jax.vmap(words)(jnp.arange(count)))
