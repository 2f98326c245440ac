"""Next-token cross-entropy whose logits never exist for all tokens at once.

The head's product with V = 128256 makes [B, T, V] the largest array of a naive training step. Here
the tokens go through the head in chunks, and where a gradient is asked for, each chunk's gradient
is computed while its logits exist: three products with the head per token, as many as the naive
step, and no recomputation. This is possible because a sum of losses has a scalar cotangent.

On a mesh each device does so with its own tokens and its part of the vocabulary: the head is
gathered once and its gradient summed over devices once, not for each chunk.

B batch, T position, D embed, V vocab, C tokens in a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.model.context import row_layout
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params, hidden_states
from cwm_jax.sharding import BATCH_AXES, map_over_shards, mesh_axes, shards_of

Batch = dict[str, jax.Array]

_IN_AXES = ((*BATCH_AXES, None), (None, "vocab"), BATCH_AXES, BATCH_AXES)
_OUT_AXES = (((), ()), (*BATCH_AXES, None), ("embed", "vocab"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over a batch's counted tokens; add them over micro-batches, then divide by the count."""

    objective: Float[Array, ""]
    """Cross-entropy plus z-loss, in nats: what is differentiated."""
    cross_entropy: Float[Array, ""]
    """In nats; carries no gradient."""
    num_targets: Float[Array, ""]


def loss(
    params: Params,
    model_config: ModelConfig,
    batch: Batch,
    *,
    z_loss: float = 0.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy in nats per counted token, z-loss added, and metrics.

    Args:
        params: as from ``init``.
        model_config: the architecture.
        batch: ``tokens targets positions segment_ids`` int32 and ``loss_mask``, each ``[B, T]``.
        z_loss: weight of the squared log-partition function.
        execution: speed and rounding.
    """
    sums = loss_sums(params, model_config, batch, z_loss=z_loss, execution=execution)
    count = jnp.maximum(sums.num_targets, 1.0)
    metrics = {"cross_entropy": sums.cross_entropy / count, "num_targets": sums.num_targets}
    return sums.objective / count, metrics


def loss_sums(
    params: Params,
    model_config: ModelConfig,
    batch: Batch,
    *,
    z_loss: float = 0.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    attention_cap: int | None = None,
) -> LossSums:
    """The sums behind ``loss``; exact under gradient accumulation and packing.

    ``attention_cap`` as for ``hidden_states``.
    """
    layout = row_layout(execution.context_layout)
    batch = {name: layout.arrange(x) for name, x in batch.items()}  # all below is by token
    x = hidden_states(
        params,
        model_config,
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        execution=execution,
        attention_cap=attention_cap,
        layout=layout,
    )
    mask = batch["loss_mask"].astype(jnp.float32)
    kernel = params["lm_head"]["kernel"].astype(x.dtype)
    sums: Any = chunked_cross_entropy(
        x, kernel, batch["targets"], mask, z_loss, execution.loss_chunk_tokens
    )
    objective, cross_entropy = sums
    return LossSums(objective, jax.lax.stop_gradient(cross_entropy), mask.sum())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Float[Array, "B T"],
    z_loss: float,
    chunk_tokens: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(cross-entropy + z-loss, cross-entropy): float32 sums over the tokens, weighted by ``mask``.

    Differentiable once in x and kernel, through the first result alone.
    """

    def local_sums(x, kernel, targets, mask):
        def chunk(sums, inputs):
            x, targets, mask = inputs
            found = _chunk_losses(x, kernel, targets, mask, z_loss, vocab)
            return (sums[0] + found.objective, sums[1] + found.cross_entropy), None

        zero = jnp.zeros((), jnp.float32)
        sums, _ = _scan(chunk, (zero, zero), _split((x, targets, mask), chunk_tokens))
        return jax.lax.psum(sums, tokens)

    tokens, vocab = _token_axes(), _axes("vocab")
    return map_over_shards(local_sums, in_axes=_IN_AXES, out_axes=((), ()))(
        x, kernel, targets, mask
    )


def _forward(x, kernel, targets, mask, z_loss, chunk_tokens):
    def local_gradients(x, kernel, targets, mask):
        def chunk(carry, inputs):
            (objective, cross_entropy), d_kernel = carry
            x, targets, mask = inputs
            found = _chunk_losses(x, kernel, targets, mask, z_loss, vocab)
            d_lse = mask * (1 + 2 * z_loss * found.lse)
            d_logits = jnp.exp(found.logits - found.lse[..., None]) * d_lse[..., None]
            is_target = found.target_index[..., None] == jnp.arange(kernel.shape[1])
            d_logits = d_logits - jnp.where(is_target, mask[..., None], 0.0)
            d_logits = d_logits.astype(x.dtype)
            d_x = jax.lax.psum(jnp.einsum("bcv,dv->bcd", d_logits, kernel), vocab)
            d_kernel += jnp.einsum("bcd,bcv->dv", x, d_logits, preferred_element_type=jnp.float32)
            sums = (objective + found.objective, cross_entropy + found.cross_entropy)
            return (sums, d_kernel), d_x

        zero = jnp.zeros((), jnp.float32)
        carry = ((zero, zero), jnp.zeros(kernel.shape, jnp.float32))
        (sums, d_kernel), d_x = _scan(chunk, carry, _split((x, targets, mask), chunk_tokens))
        d_kernel = _sum_kernel(d_kernel, tokens, embed)
        return jax.lax.psum(sums, tokens), _join(d_x, x.shape[1]), d_kernel

    tokens, vocab, embed = _token_axes(), _axes("vocab"), _axes("embed")
    run = map_over_shards(local_gradients, in_axes=_IN_AXES, out_axes=_OUT_AXES)
    sums, d_x, d_kernel = run(x, kernel, targets, mask)
    return sums, (d_x, d_kernel.astype(kernel.dtype))


def _backward(z_loss, chunk_tokens, residuals, cotangents):
    d_x, d_kernel = residuals
    scale = cotangents[0]
    return (d_x * scale).astype(d_x.dtype), (d_kernel * scale).astype(d_kernel.dtype), None, None


chunked_cross_entropy.defvjp(_forward, _backward)


# ---------------------------------------------------------------- on a device's own tokens


@dataclasses.dataclass(frozen=True)
class _ChunkLosses:
    objective: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    logits: Float[Array, "B C V"]
    lse: Float[Array, "B C"]
    target_index: Int[Array, "B C"]
    """In this device's part of the vocabulary; outside of it elsewhere."""


def _chunk_losses(x, kernel, targets, mask, z_loss, vocab) -> _ChunkLosses:
    """Of tokens and a part of the vocabulary, which the other parts along ``vocab`` complete."""
    logits = jnp.einsum("bcd,dv->bcv", x, kernel, preferred_element_type=jnp.float32)
    V = kernel.shape[1]
    index = targets - (jax.lax.axis_index(vocab) * V if vocab else 0)
    here = (index >= 0) & (index < V)
    target_logits = jnp.take_along_axis(logits, jnp.clip(index, 0, V - 1)[..., None], axis=-1)
    target_logits = jax.lax.psum(jnp.where(here, target_logits[..., 0], 0.0), vocab)
    lse = jax.nn.logsumexp(logits, axis=-1)
    if vocab:
        peak = jax.lax.pmax(lse, vocab)
        lse = peak + jnp.log(jax.lax.psum(jnp.exp(lse - peak), vocab))
    cross_entropy = jnp.sum(mask * (lse - target_logits))
    objective = cross_entropy + z_loss * jnp.sum(mask * jnp.square(lse))
    return _ChunkLosses(objective, cross_entropy, logits, lse, index)


def _axes(axis: str) -> tuple[str, ...]:
    """Mesh axes that cut a logical axis; none without a mesh."""
    return mesh_axes(axis) if shards_of(axis) > 1 else ()


def _token_axes() -> tuple[str, ...]:
    return sum((_axes(axis) for axis in BATCH_AXES), ())


def _sum_kernel(d_kernel, tokens, embed):
    """The sum over the devices' tokens; of it each device gets its part of D alone."""
    if embed:
        d_kernel = jax.lax.psum_scatter(d_kernel, embed, scatter_dimension=0, tiled=True)
    return jax.lax.psum(d_kernel, tuple(axis for axis in tokens if axis not in embed))


def _split(arrays, chunk_tokens: int):
    """``[B, T, ...]`` -> ``[n, B, C, ...]``, the last chunk padded with zeros (mask 0)."""
    B, T = arrays[0].shape[:2]
    length = min(T, max(1, chunk_tokens // B))

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, -T % length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, length, *x.shape[2:]), 1, 0)

    return tuple(split(x) for x in arrays)


def _join(x, T: int):
    """Inverse of ``_split`` for one array of rows of T tokens."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def _scan(body, carry, xs) -> Any:
    """``lax.scan``, but a single chunk runs outside any loop."""
    if xs[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, tuple(x[0] for x in xs))
    return carry, None if y is None else y[None]
