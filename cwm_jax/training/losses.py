"""Next-token cross-entropy whose logits never exist for all tokens at once.

The head's product with V = 128256 makes [B, T, V] the largest array of a naive training step. Here
the tokens go through the head in chunks, and where a gradient is asked for, each chunk's gradient
is computed while its logits exist: three products with the head per token, as many as the naive
step, and no recomputation. This is possible because a sum of losses has a scalar cotangent.

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
from cwm_jax.sharding import shard, shards_of

Batch = dict[str, jax.Array]


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

    def chunk(sums, inputs):
        x, targets, mask = inputs
        objective, cross_entropy, _, _ = _chunk_losses(x, kernel, targets, mask, z_loss)
        return (sums[0] + objective, sums[1] + cross_entropy), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = _scan(chunk, (zero, zero), _split((x, targets, mask), chunk_tokens))
    return sums


def _forward(x, kernel, targets, mask, z_loss, chunk_tokens):
    def chunk(carry, inputs):
        (objective, cross_entropy), d_kernel = carry
        x, targets, mask = inputs
        objective_, cross_entropy_, logits, lse = _chunk_losses(x, kernel, targets, mask, z_loss)
        d_lse = mask * (1 + 2 * z_loss * lse)
        d_logits = jnp.exp(logits - lse[..., None]) * d_lse[..., None]
        is_target = targets[..., None] == jnp.arange(kernel.shape[1])
        d_logits = (d_logits - jnp.where(is_target, mask[..., None], 0.0)).astype(x.dtype)
        d_x = jnp.einsum("bcv,dv->bcd", d_logits, kernel)
        d_kernel += jnp.einsum("bcd,bcv->dv", x, d_logits, preferred_element_type=jnp.float32)
        sums = (objective + objective_, cross_entropy + cross_entropy_)
        return (sums, d_kernel), d_x

    zero = jnp.zeros((), jnp.float32)
    carry = ((zero, zero), jnp.zeros(kernel.shape, jnp.float32))
    (sums, d_kernel), d_x = _scan(chunk, carry, _split((x, targets, mask), chunk_tokens))
    return sums, (_join(d_x, x.shape[1]), d_kernel.astype(kernel.dtype))


def _backward(z_loss, chunk_tokens, residuals, cotangents):
    d_x, d_kernel = residuals
    scale = cotangents[0]
    return (d_x * scale).astype(d_x.dtype), (d_kernel * scale).astype(d_kernel.dtype), None, None


chunked_cross_entropy.defvjp(_forward, _backward)


def _chunk_losses(x, kernel, targets, mask, z_loss):
    logits = jnp.einsum("bcd,dv->bcv", x, kernel, preferred_element_type=jnp.float32)
    logits = shard(logits, "batch", "seq", "act_vocab")
    lse = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    cross_entropy = jnp.sum(mask * (lse - target_logits))
    objective = cross_entropy + z_loss * jnp.sum(mask * jnp.square(lse))
    return objective, cross_entropy, logits, lse


def _split(arrays, chunk_tokens: int):
    """``[B, T, ...]`` -> ``[n, B, C, ...]``, the last chunk padded with zeros (mask 0).

    A chunk has tokens of every device along context; ``chunk_tokens`` counts those of one device.
    """
    B, T = arrays[0].shape[:2]
    rows, parts = max(1, B // shards_of("batch")), shards_of("seq")
    length = min(T // parts, max(1, chunk_tokens // rows))
    padding = -(T // parts) % length

    def split(x):
        x = x.reshape(B, parts, T // parts, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        x = x.reshape(B, parts, -1, length, *x.shape[3:])
        x = jnp.moveaxis(x, 2, 0).reshape(x.shape[2], B, parts * length, *x.shape[4:])
        return shard(x, None, "batch", "seq", *[None] * (x.ndim - 3))

    return tuple(split(x) for x in arrays)


def _join(x, T: int):
    """Inverse of ``_split`` for one array of rows of T tokens."""
    parts = shards_of("seq")
    n, B = x.shape[:2]
    x = jnp.moveaxis(x.reshape(n, B, parts, -1, *x.shape[3:]), 0, 2)
    x = x.reshape(B, parts, -1, *x.shape[4:])[:, :, : T // parts]
    return shard(x.reshape(B, T, *x.shape[3:]), "batch", "seq", "act_embed")


def _scan(body, carry, xs) -> Any:
    """``lax.scan``, but a single chunk runs outside any loop."""
    if xs[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, tuple(x[0] for x in xs))
    return carry, None if y is None else y[None]
