"""The head's product in chunks of tokens, on a device's own tokens and part of the vocabulary.

What needs the logits of a chunk takes them here; ``map_over_shards`` calls it on each device. The
head is gathered once for all chunks, and its gradient summed over devices once.

B batch, T position, C tokens in a chunk, D embed, V vocab.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.sharding import BATCH_AXES, map_over_shards, mesh_axes, shards_of

X_AXES = (*BATCH_AXES, None)
GATHERED_AXES = (None, "vocab")  # of the head, for the products
KERNEL_AXES = ("embed", "vocab")  # of its gradient


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Of a chunk's tokens."""

    logits: Float[Array, "B C V"]
    """float32, of this device's part of the vocabulary."""
    lse: Float[Array, "B C"]
    """Log-sum-exp over the whole vocabulary."""
    target_logits: Float[Array, "B C"]
    target_index: Int[Array, "B C"]
    """In this device's part of the vocabulary; outside of it elsewhere."""


def chunk(x, kernel, targets, vocab: tuple[str, ...], temperature: float = 1.0) -> Chunk:
    """Logits ``[B, C, V]`` of tokens and a part of the vocabulary, and what all parts give.

    They are divided by ``temperature`` in float32, as a sampler does.
    """
    logits = jnp.einsum("bcd,dv->bcv", x, kernel, preferred_element_type=jnp.float32)
    if temperature != 1.0:
        logits = logits / temperature
    V = kernel.shape[1]
    index = targets - (jax.lax.axis_index(vocab) * V if vocab else 0)
    here = (index >= 0) & (index < V)
    target_logits = jnp.take_along_axis(logits, jnp.clip(index, 0, V - 1)[..., None], axis=-1)
    target_logits = jax.lax.psum(jnp.where(here, target_logits[..., 0], 0.0), vocab)
    lse = jax.nn.logsumexp(logits, axis=-1)
    if vocab:
        peak = jax.lax.pmax(lse, vocab)
        lse = peak + jnp.log(jax.lax.psum(jnp.exp(lse - peak), vocab))
    return Chunk(logits, lse, target_logits, index)


def chunk_gradients(x, kernel, found: Chunk, d_lse, d_target, vocab: tuple[str, ...]):
    """(d_x, d_kernel float32) from the cotangents ``[B, C]`` of ``lse`` and ``target_logits``."""
    d_logits = jnp.exp(found.logits - found.lse[..., None]) * d_lse[..., None]
    is_target = found.target_index[..., None] == jnp.arange(kernel.shape[1])
    d_logits = d_logits + jnp.where(is_target, d_target[..., None], 0.0)
    d_logits = d_logits.astype(x.dtype)
    d_x = jax.lax.psum(jnp.einsum("bcv,dv->bcd", d_logits, kernel), vocab)
    d_kernel = jnp.einsum("bcd,bcv->dv", x, d_logits, preferred_element_type=jnp.float32)
    return d_x, d_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def token_logprobs(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    chunk_tokens: int,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log-probability of each target, entropy of each prediction), float32, in nats,
    of the distribution whose logits are divided by ``temperature`` (above 0).

    Differentiable once in x and kernel, through the first result alone; the logits are computed
    again for it.
    """
    return _token_logprobs(x, kernel, targets, chunk_tokens, temperature)


def _token_logprobs(x, kernel, targets, chunk_tokens: int, temperature: float):

    def local(x, kernel, targets):
        def one(_, inputs):
            x, targets = inputs
            found = chunk(x, kernel, targets, vocab, temperature)
            # not lse - sum(p * logits): the rounding of p is not to be multiplied by large logits
            logp = found.logits - found.lse[..., None]
            entropy = -jax.lax.psum(jnp.sum(jnp.exp(logp) * logp, axis=-1), vocab)
            return None, (found.target_logits - found.lse, entropy)

        _, results = scan(one, None, split((x, targets), chunk_tokens))
        return tuple(join(result, targets.shape[1]) for result in results)

    vocab = axes_of("vocab")
    run = map_over_shards(
        local, in_axes=(X_AXES, GATHERED_AXES, BATCH_AXES), out_axes=(BATCH_AXES,) * 2
    )
    found: Any = run(x, kernel, targets)
    return found


def _forward(x, kernel, targets, chunk_tokens, temperature):
    found = _token_logprobs(x, kernel, targets, chunk_tokens, temperature)
    return found, (x, kernel, targets)


def _backward(chunk_tokens, temperature, residuals, cotangents):
    def local(x, kernel, targets, d_logprobs):
        def one(d_kernel, inputs):
            x, targets, d = inputs
            found = chunk(x, kernel, targets, vocab, temperature)
            d = d / temperature  # of the logits before the division
            d_x, d_part = chunk_gradients(x, kernel, found, -d, d, vocab)
            return d_kernel + d_part, d_x

        zero = jnp.zeros(kernel.shape, jnp.float32)
        d_kernel, d_x = scan(one, zero, split((x, targets, d_logprobs), chunk_tokens))
        return join(d_x, x.shape[1]), sum_kernel(d_kernel, tokens, embed)

    x, kernel, targets = residuals
    tokens, vocab, embed = token_axes(), axes_of("vocab"), axes_of("embed")
    run = map_over_shards(
        local,
        in_axes=(X_AXES, GATHERED_AXES, BATCH_AXES, BATCH_AXES),
        out_axes=(X_AXES, KERNEL_AXES),
    )
    d_x, d_kernel = run(x, kernel, targets, cotangents[0])
    return d_x, d_kernel.astype(kernel.dtype), None


token_logprobs.defvjp(_forward, _backward)


def axes_of(axis: str) -> tuple[str, ...]:
    """Mesh axes that cut a logical axis; none without a mesh."""
    return mesh_axes(axis) if shards_of(axis) > 1 else ()


def token_axes() -> tuple[str, ...]:
    return sum((axes_of(axis) for axis in BATCH_AXES), ())


def sum_kernel(d_kernel, tokens, embed):
    """The sum over the devices' tokens; of it each device gets its part of D alone."""
    if embed:
        d_kernel = jax.lax.psum_scatter(d_kernel, embed, scatter_dimension=0, tiled=True)
    return jax.lax.psum(d_kernel, tuple(axis for axis in tokens if axis not in embed))


def split(arrays, chunk_tokens: int):
    """``[B, T, ...]`` -> ``[n, B, C, ...]``, the last chunk padded with zeros (mask 0)."""
    B, T = arrays[0].shape[:2]
    length = min(T, max(1, chunk_tokens // B))

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, -T % length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, length, *x.shape[2:]), 1, 0)

    return tuple(split(x) for x in arrays)


def join(x, T: int):
    """Inverse of ``split`` for one array of rows of T tokens."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def scan(body, carry, xs) -> Any:
    """``lax.scan``, but a single chunk runs outside any loop."""
    if xs[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, tuple(x[0] for x in xs))
    return carry, jax.tree.map(lambda part: part[None], y)
