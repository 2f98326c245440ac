"""The cache of a batch of rows: made empty, filled with prompts, extended token by token.

Pure functions over ``(params, cache, tokens)``: jit them with the cache donated, or it is copied.

P prompts of a call, T their padded length, C rows of the cache, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.model.cache import CacheAccess, Caches, LayerCache
from cwm_jax.model.transformer import (
    DEFAULT_EXECUTION,
    Params,
    cached_hidden_states,
    logits_from_hidden,
)


class KVCache(NamedTuple):
    """Keys and values of all layers for C rows, each one document from position 0."""

    layers: Caches
    lengths: Int[Array, " C"]
    """Tokens that each row holds; what lies in later slots is never seen."""

    @property
    def max_length(self) -> int:
        """Slots of a row."""
        return jax.tree.leaves(self.layers)[0].shape[3]


def init_cache(
    model_config: ModelConfig, batch_size: int, max_length: int, *, dtype: str = "float32"
) -> KVCache:
    """An empty cache of ``batch_size`` rows of ``max_length`` slots in every layer."""
    K, H = model_config.num_key_value_heads, model_config.head_dim

    def zeros(repeats: int) -> LayerCache:
        shape = (repeats, batch_size, K, max_length, H)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    in_groups = model_config.period * model_config.num_repeats
    layers = Caches(
        [zeros(model_config.num_repeats) for _ in range(model_config.period)],
        [zeros(1) for _ in model_config.layer_types[in_groups:]],
    )
    return KVCache(layers, jnp.zeros(batch_size, jnp.int32))


def prefill(
    params: Params,
    model_config: ModelConfig,
    cache: KVCache,
    tokens: Int[Array, "P T"],
    *,
    lengths: Int[Array, " P"],
    rows: Int[Array, " P"],
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> KVCache:
    """Starts rows anew with the first ``lengths`` of ``tokens``, padded on the right.

    Args:
        params, model_config, execution: as for ``forward``.
        cache: its other rows stay as they are.
        tokens: at most as many as the cache has slots.
        lengths: 0 makes a row empty.
        rows: of the cache, no two the same; a row past the last one is written nowhere.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(index, tokens.shape)
    _, layers = cached_hidden_states(
        params,
        model_config,
        tokens,
        caches=cache.layers,
        access=CacheAccess(positions, rows, num_keys=0),
        segment_ids=(index < lengths[:, None]).astype(jnp.int32),
        execution=execution,
    )
    return KVCache(layers, cache.lengths.at[rows].set(lengths, mode="drop"))


def decode(
    params: Params,
    model_config: ModelConfig,
    cache: KVCache,
    tokens: Int[Array, " C"],
    *,
    num_keys: int | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "C V"], KVCache]:
    """Appends one token to every row; float32 logits of the token after it.

    Args:
        params, model_config, execution: as for ``forward``.
        cache: a row that is full stays so, and its logits mean nothing.
        tokens: the next of each row.
        num_keys: slots that are read, at least as many as the longest row then holds; None is all.
    """
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    x, layers = cached_hidden_states(
        params,
        model_config,
        tokens[:, None],
        caches=cache.layers,
        access=CacheAccess(cache.lengths[:, None], rows, num_keys=num_keys or cache.max_length),
        execution=execution,
    )
    lengths = jnp.minimum(cache.lengths + 1, cache.max_length)
    return logits_from_hidden(params, x)[:, 0], KVCache(layers, lengths)
