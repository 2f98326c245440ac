"""Teacher forcing: what the model predicts after each token of given sequences.

B batch, T position, D embed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.cache import KVCache, extend
from cwm_jax.model.transformer import (
    DEFAULT_EXECUTION,
    Params,
    hidden_states,
    logits_from_hidden,
)


class Scores(NamedTuple):
    """At each position, of the token after it."""

    predictions: Int[Array, "B T"]
    """The most likely token."""
    logprobs: Float[Array, "B T"]
    """Log-probability of the target, in nats, float32."""


def score(
    params: Params,
    model_config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    targets: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> Scores:
    """Greedy predictions and log-probabilities of given next tokens; jit it for speed.

    Logits exist for ``execution.loss_chunk_tokens`` tokens at a time.

    Args:
        params, model_config, tokens, positions, segment_ids, execution: as for ``forward``.
        targets: the token after each position: of one sequence s, tokens are ``s[:-1]`` and targets
            ``s[1:]``.
    """
    if targets.shape != tokens.shape:
        raise ValueError(
            f"targets has shape {targets.shape}; expected that of tokens, {tokens.shape}: one "
            "target for each position"
        )
    x = hidden_states(
        params,
        model_config,
        tokens,
        positions=positions,
        segment_ids=segment_ids,
        execution=execution,
    )
    return _scores(params, x, targets, execution)


def cached_score(
    params: Params,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    *,
    targets: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    rows: Int[Array, " B"],
    num_cached: int | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Scores, KVCache]:
    """``score`` of tokens that go on where rows of a cache end, and the cache with them.

    Args:
        params, cache, tokens, lengths, rows, num_cached, execution: as for ``extend``.
        targets: the token after each position.
    """
    x, cache = extend(
        params,
        cache,
        tokens,
        lengths=lengths,
        rows=rows,
        num_cached=num_cached,
        execution=execution,
    )
    return _scores(params, x, targets, execution), cache


def _scores(params: Params, x, targets, execution: ExecutionConfig) -> Scores:
    def one_position(inputs):
        x, targets = inputs  # [B, D], [B]
        logits = logits_from_hidden(params, x[:, None])[:, 0]
        picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        logprobs = picked - jax.nn.logsumexp(logits, axis=1)
        return Scores(jnp.argmax(logits, axis=1).astype(jnp.int32), logprobs)

    by_position = (jnp.moveaxis(x, 1, 0), targets.T)
    chunk = max(1, execution.loss_chunk_tokens // targets.shape[0])
    scores = jax.lax.map(one_position, by_position, batch_size=chunk)
    return Scores(scores.predictions.T, scores.logprobs.T)
