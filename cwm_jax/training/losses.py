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
from cwm_jax.model import head
from cwm_jax.model.context import row_layout
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params, hidden_states
from cwm_jax.sharding import BATCH_AXES, map_over_shards

Batch = dict[str, jax.Array]

_IN_AXES = (head.X_AXES, head.GATHERED_AXES, BATCH_AXES, BATCH_AXES)
_OUT_AXES = (((), ()), head.X_AXES, head.KERNEL_AXES)


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
            found = head.chunk(x, kernel, targets, vocab)
            return _add(sums, found, mask, z_loss), None

        zero = jnp.zeros((), jnp.float32)
        sums, _ = head.scan(chunk, (zero, zero), head.split((x, targets, mask), chunk_tokens))
        return jax.lax.psum(sums, tokens)

    tokens, vocab = head.token_axes(), head.axes_of("vocab")
    return map_over_shards(local_sums, in_axes=_IN_AXES, out_axes=((), ()))(
        x, kernel, targets, mask
    )


def _forward(x, kernel, targets, mask, z_loss, chunk_tokens):
    def local_gradients(x, kernel, targets, mask):
        def chunk(carry, inputs):
            sums, d_kernel = carry
            x, targets, mask = inputs
            found = head.chunk(x, kernel, targets, vocab)
            d_lse = mask * (1 + 2 * z_loss * found.lse)
            d_x, d_part = head.chunk_gradients(x, kernel, found, d_lse, -mask, vocab)
            return (_add(sums, found, mask, z_loss), d_kernel + d_part), d_x

        zero = jnp.zeros((), jnp.float32)
        carry = ((zero, zero), jnp.zeros(kernel.shape, jnp.float32))
        (sums, d_kernel), d_x = head.scan(
            chunk, carry, head.split((x, targets, mask), chunk_tokens)
        )
        d_kernel = head.sum_kernel(d_kernel, tokens, embed)
        return jax.lax.psum(sums, tokens), head.join(d_x, x.shape[1]), d_kernel

    tokens, vocab, embed = head.token_axes(), head.axes_of("vocab"), head.axes_of("embed")
    run = map_over_shards(local_gradients, in_axes=_IN_AXES, out_axes=_OUT_AXES)
    sums, d_x, d_kernel = run(x, kernel, targets, mask)
    return sums, (d_x, d_kernel.astype(kernel.dtype))


def _backward(z_loss, chunk_tokens, residuals, cotangents):
    d_x, d_kernel = residuals
    scale = cotangents[0]
    return (d_x * scale).astype(d_x.dtype), (d_kernel * scale).astype(d_kernel.dtype), None, None


chunked_cross_entropy.defvjp(_forward, _backward)


def _add(sums, found: head.Chunk, mask, z_loss: float):
    """(objective, cross-entropy) with those of a chunk."""
    cross_entropy = jnp.sum(mask * (found.lse - found.target_logits))
    penalty = z_loss * jnp.sum(mask * jnp.square(found.lse))
    return sums[0] + cross_entropy + penalty, sums[1] + cross_entropy
