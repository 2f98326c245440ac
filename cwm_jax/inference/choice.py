"""The choice of the next token from logits: the most likely one, or a draw.

C rows, V vocab.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """How tokens are chosen, in all rows alike; make it with ``make_choice``."""

    key: jax.Array
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    kind: Literal["greedy", "draw", "nucleus"] = dataclasses.field(metadata={"static": True})


def make_choice(temperature: float, top_p: float, key: jax.Array | None) -> Choice:
    """Checks the settings; arguments as for ``Decoder.generate``.

    Raises:
        ValueError: a setting out of its range, or a temperature above 0 without key.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature is {temperature}; expected a finite number, 0 (greedy) or more"
        )
    if not 0 < top_p <= 1:
        raise ValueError(
            f"top_p is {top_p}; expected above 0 and at most 1 (all tokens): for the most likely "
            "token alone give temperature=0"
        )
    if temperature > 0 and key is None:
        raise ValueError(
            f"temperature is {temperature} and key is None; expected a JAX random key to draw "
            "with: give key=jax.random.key(seed), or temperature=0"
        )
    kind = "greedy" if temperature == 0 else "draw" if top_p == 1 else "nucleus"
    key = jax.random.key(0) if key is None else key
    return Choice(key, jnp.float32(temperature), jnp.float32(top_p), kind)


def choose(
    choice: Choice,
    logits: Float[Array, "C V"],
    *,
    numbers: Int[Array, " C"],
    positions: Int[Array, " C"],
) -> Int[Array, " C"]:
    """One token for each row; draws of rows with another number or position are independent."""
    if choice.kind == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / choice.temperature
    if choice.kind == "nucleus":
        logits = _nucleus(logits, choice.top_p)

    def draw(logits, number, position):
        key = jax.random.fold_in(jax.random.fold_in(choice.key, number), position)
        return jax.random.categorical(key, logits)

    return jax.vmap(draw)(logits, numbers, positions).astype(jnp.int32)


def _nucleus(logits, top_p):
    """-inf outside the smallest set of most likely tokens whose probability reaches ``top_p``."""
    ranked = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # by the rank, not by `before`: rounded, the first one's may lie above 0
    needed = (before < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(needed, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
