"""The two compiled programs of the engine: a piece of prompts, and some steps of decoding.

Everything but the cache comes from the host and goes back to it with each call.

B rows of a call, T tokens, V vocab.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cwm_jax.config import ExecutionConfig
from cwm_jax.inference.cache import (
    CacheLayout,
    Extension,
    decode_pages,
    extend_pages,
    put_back,
    whole_rows,
)
from cwm_jax.inference.choice import Choice, choose
from cwm_jax.inference.requests import MAX_LOGPROBS, MAX_STOP_TOKENS
from cwm_jax.model.cache import Caches
from cwm_jax.model.transformer import Params


class Rows(NamedTuple):
    """Rows that decode together; one that is not active is padding."""

    tokens: Int[Array, " B"]
    """Known, but not yet in the cache."""
    lengths: Int[Array, " B"]
    """Tokens in the cache."""
    limits: Int[Array, " B"]
    """Tokens, the prompt's included, at which a row stops."""
    active: Bool[Array, " B"]
    stops: Int[Array, f"B {MAX_STOP_TOKENS}"]
    """Tokens that end a row; -1 is none."""
    pages: dict[str, Int[Array, "B n"]]
    """By layer type."""
    choice: Choice


class Made(NamedTuple):
    """What some steps made; row b's tokens are the first ``counts[b]`` of column b."""

    tokens: Int[Array, "steps B"]
    logprobs: Float[Array, "steps B"]
    """Under the model at temperature 1, in nats."""
    counts: Int[Array, " B"]
    top_tokens: Int[Array, f"steps B {MAX_LOGPROBS}"]
    """The most likely; 0 unless asked for."""
    top_logprobs: Float[Array, f"steps B {MAX_LOGPROBS}"]


@functools.partial(jax.jit, donate_argnums=1, static_argnames=("layout", "execution"))
def extend_rows(
    params: Params,
    caches: Caches,
    extension: Extension,
    *,
    layout: CacheLayout,
    execution: ExecutionConfig,
) -> Caches:
    """The caches with the tokens; no logits are made."""
    return extend_pages(params, layout, caches, extension, execution=execution)[1]


@functools.partial(
    jax.jit,
    donate_argnums=1,
    static_argnames=("layout", "execution", "max_steps", "num_keys", "copy_rows"),
)
def decode_rows(
    params: Params,
    caches: Caches,
    rows: Rows,
    num_steps: Int[Array, ""],
    with_top: Bool[Array, ""],
    *,
    layout: CacheLayout,
    execution: ExecutionConfig,
    max_steps: int,
    num_keys: int,
    copy_rows: bool,
) -> tuple[Caches, Made]:
    """Up to ``num_steps`` tokens in each active row; it ends early when no row is active.

    Args:
        params, caches: as for ``decode_pages``.
        rows: where they stand.
        num_steps: at most ``max_steps``.
        with_top: whether the most likely tokens are wanted, too.
        layout, execution: as for ``decode_pages``.
        max_steps: room for results.
        num_keys: the most that an active row may hold in the end.
        copy_rows: whether ``whole_rows`` are made for the steps; see ``pays_to_copy_rows``.
    """
    B, before = rows.tokens.shape[0], rows
    kept = whole_rows(layout, caches, rows.pages, num_keys) if copy_rows else caches

    def step(carry):
        kept, rows, made, n = carry
        logits, kept = decode_pages(
            params,
            layout,
            kept,
            rows.tokens,
            lengths=rows.lengths,
            active=rows.active,
            pages=None if copy_rows else rows.pages,
            num_keys=num_keys,
            execution=execution,
        )
        lengths = rows.lengths + rows.active
        chosen = choose(rows.choice, logits, lengths)
        made = _record(made, n, logits, chosen, rows.active, with_top)
        stopped = (rows.stops == chosen[:, None]).any(axis=1)
        rows = rows._replace(
            tokens=jnp.where(rows.active, chosen, rows.tokens),
            lengths=lengths,
            active=rows.active & ~stopped & (lengths + 1 < rows.limits),
        )
        return kept, rows, made, n + 1

    def unfinished(carry):
        _, rows, _, n = carry
        return (n < num_steps) & rows.active.any()

    made = _nothing_made(max_steps, B)
    kept, _, made, _ = jax.lax.while_loop(unfinished, step, (kept, rows, made, jnp.int32(0)))
    if copy_rows:
        kept = put_back(
            layout,
            caches,
            kept,
            before.pages,
            lengths=before.lengths,
            counts=made.counts,
            max_count=max_steps,
        )
    return kept, made


def _nothing_made(max_steps: int, B: int) -> Made:
    tokens, top = jnp.zeros((max_steps, B), jnp.int32), (max_steps, B, MAX_LOGPROBS)
    return Made(
        tokens,
        jnp.zeros(tokens.shape, jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(top, jnp.int32),
        jnp.zeros(top, jnp.float32),
    )


def _record(made: Made, n, logits, chosen, active, with_top) -> Made:
    total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    logprobs = jnp.take_along_axis(logits, chosen[:, None], axis=1) - total
    k = min(MAX_LOGPROBS, logits.shape[1])

    def top():
        values, tokens = jax.lax.top_k(logits, k)
        room = ((0, 0), (0, MAX_LOGPROBS - k))
        return jnp.pad(tokens.astype(jnp.int32), room), jnp.pad(values - total, room)

    def none():
        shape = (logits.shape[0], MAX_LOGPROBS)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    top_tokens, top_logprobs = jax.lax.cond(with_top, top, none)
    return Made(
        made.tokens.at[n].set(chosen),
        made.logprobs.at[n].set(logprobs[:, 0]),
        made.counts + active,
        made.top_tokens.at[n].set(top_tokens),
        made.top_logprobs.at[n].set(top_logprobs),
    )
