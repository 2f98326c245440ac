"""The rows that decode together on the device: admission of prompts, and a chunk of steps.

C rows of the batch, P prompts admitted together, T their padded length, V vocab.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.cache import KVCache, decode, init_cache, prefill
from cwm_jax.inference.choice import Choice, choose
from cwm_jax.model.transformer import Params

CHUNK_STEPS = 32  # assumed: steps between two looks of the host


class Rows(NamedTuple):
    """State of the batch."""

    cache: KVCache
    next_tokens: Int[Array, " C"]
    """Known, but not yet in the cache."""
    limits: Int[Array, " C"]
    """Tokens, the prompt's included, at which a row stops."""
    active: Bool[Array, " C"]
    numbers: Int[Array, " C"]
    """Of the prompts, for the draws."""


class Prompts(NamedTuple):
    """Prompts to be admitted; one whose row lies past the last is padding."""

    tokens: Int[Array, "P T"]
    """All but the last of each prompt, padded on the right."""
    last_tokens: Int[Array, " P"]
    lengths: Int[Array, " P"]
    """Of ``tokens``, without padding."""
    rows: Int[Array, " P"]
    limits: Int[Array, " P"]
    numbers: Int[Array, " P"]


class Chunk(NamedTuple):
    """What a chunk of steps made; row c's tokens are the first ``counts[c]`` of column c."""

    tokens: Int[Array, "steps C"]
    logprobs: Float[Array, "steps C"]
    counts: Int[Array, " C"]
    active: Bool[Array, " C"]


def init_rows(model_config: ModelConfig, batch_size: int, max_length: int, *, dtype: str) -> Rows:
    """A batch without prompts."""
    cache = init_cache(model_config, batch_size, max_length, dtype=dtype)

    def zeros() -> jax.Array:  # each an array of its own: all are donated
        return jnp.zeros(batch_size, jnp.int32)

    return Rows(cache, zeros(), zeros(), jnp.zeros(batch_size, bool), zeros())


@functools.partial(jax.jit, donate_argnums=1, static_argnames=("model_config", "execution"))
def admit(
    params: Params,
    rows: Rows,
    prompts: Prompts,
    *,
    model_config: ModelConfig,
    execution: ExecutionConfig,
) -> Rows:
    """Gives prompts the rows that they name; the last token of each is the next to be decoded."""
    cache = prefill(
        params,
        model_config,
        rows.cache,
        prompts.tokens,
        lengths=prompts.lengths,
        rows=prompts.rows,
        execution=execution,
    )

    def put(old, new):
        return old.at[prompts.rows].set(new, mode="drop")

    return Rows(
        cache,
        put(rows.next_tokens, prompts.last_tokens),
        put(rows.limits, prompts.limits),
        put(rows.active, True),
        put(rows.numbers, prompts.numbers),
    )


@functools.partial(
    jax.jit, donate_argnums=1, static_argnames=("model_config", "execution", "num_keys")
)
def decode_chunk(
    params: Params,
    rows: Rows,
    choice: Choice,
    stops: Bool[Array, " V"],
    *,
    model_config: ModelConfig,
    execution: ExecutionConfig,
    num_keys: int,
) -> tuple[Rows, Chunk]:
    """Up to ``CHUNK_STEPS`` tokens in each active row; it ends early when no row is active.

    ``num_keys`` is the most that an active row may hold in the end.
    """
    C = rows.next_tokens.shape[0]

    def step(carry):
        rows, tokens, logprobs, n = carry
        logits, cache = decode(
            params,
            model_config,
            rows.cache,
            rows.next_tokens,
            num_keys=num_keys,
            execution=execution,
        )
        chosen = choose(choice, logits, numbers=rows.numbers, positions=cache.lengths)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
        lengths = jnp.where(rows.active, cache.lengths, rows.cache.lengths)
        rows = rows._replace(
            cache=cache._replace(lengths=lengths),
            next_tokens=jnp.where(rows.active, chosen, rows.next_tokens),
            active=rows.active & ~stops[chosen] & (lengths + 1 < rows.limits),
        )
        return rows, tokens.at[n].set(chosen), logprobs.at[n].set(logprob), n + 1

    def unfinished(carry):
        rows, _, _, n = carry
        return (n < CHUNK_STEPS) & rows.active.any()

    tokens = jnp.zeros((CHUNK_STEPS, C), jnp.int32)
    carry = (rows, tokens, tokens.astype(jnp.float32), jnp.int32(0))
    after, tokens, logprobs, _ = jax.lax.while_loop(unfinished, step, carry)
    counts = after.cache.lengths - rows.cache.lengths
    return after, Chunk(tokens, logprobs, counts, after.active)
