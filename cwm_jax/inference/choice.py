"""The choice of the next token from logits: the most likely one, or a draw; row by row.

B rows, V vocab.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

_BITS = 32  # of a word of the masks


class Choice(NamedTuple):
    """How the token of each row is chosen; the fields are those of ``SamplingParams``."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    keys: UInt32[Array, "B 2"]
    """Of the draws; a draw depends on its row's key and on the position."""
    allowed: UInt32[Array, "B words"]
    """Bit i of word w: whether token ``32 * w + i`` may be chosen."""


def choose(
    choice: Choice, logits: Float[Array, "B V"], positions: Int[Array, " B"]
) -> Int[Array, " B"]:
    """One token for each row, of the position after ``positions`` tokens.

    Work that no row asks for is not done: sorting only for a filter, drawing only above
    temperature 0.
    """
    words = choice.allowed
    logits = jax.lax.cond(
        (words != np.uint32(0xFFFFFFFF)).any(),
        lambda x: jnp.where(allowed_tokens(words, x.shape[1]), x, -jnp.inf),
        lambda x: x,
        logits,
    )
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draws = choice.temperature > 0
    drawn = jax.lax.cond(
        draws.any(), lambda: _draw(choice, logits, positions), lambda: jnp.zeros_like(greedy)
    )
    return jnp.where(draws, drawn, greedy)


def allowed_tokens(words: UInt32[Array, "B words"], V: int) -> Bool[Array, "B V"]:
    """The masks, unpacked."""
    bits = words[:, :, None] >> jnp.arange(_BITS, dtype=jnp.uint32) & 1
    return bits.reshape(words.shape[0], -1)[:, :V].astype(bool)


def num_words(V: int) -> int:
    """Of a mask over V tokens."""
    return -(-V // _BITS)


def pack_allowed(allowed: Collection[int], V: int) -> np.ndarray:
    """The mask ``[words]`` of token ids; those that there are not are left out."""
    bits = np.zeros(num_words(V) * _BITS, np.uint8)
    bits[[token for token in allowed if 0 <= token < V]] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _draw(choice: Choice, logits, positions):
    scaled = logits / jnp.maximum(choice.temperature, 1e-6)[:, None]  # 0: that row is greedy
    filters = (choice.top_k > 0) | (choice.top_p < 1) | (choice.min_p > 0)
    scaled = jax.lax.cond(
        (filters & (choice.temperature > 0)).any(),
        lambda x: jnp.where(x >= _least(choice, x), x, -jnp.inf),
        lambda x: x,
        scaled,
    )

    def draw(key, position, logits):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    return jax.vmap(draw)(choice.keys, positions, scaled).astype(jnp.int32)


def _least(choice: Choice, logits):
    """``[B, 1]``: the least logit that passes all filters of its row; equal ones pass together."""
    V = logits.shape[1]
    ranked = jnp.sort(logits, axis=-1, descending=True)
    top_k = jnp.where(choice.top_k > 0, choice.top_k, V)[:, None]
    ranked = jnp.where(jnp.arange(V) < top_k, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # by the rank, not by `before`: rounded, the first one's may lie above 0
    needed = ((before < choice.top_p[:, None]) & (ranked > -jnp.inf)).at[:, 0].set(True)
    least = jnp.min(jnp.where(needed, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.maximum(least, ranked[:, :1] + jnp.log(choice.min_p)[:, None])
