"""The policy's objective as a pure function of a packed batch; every choice is a setting.

==========  =========================================================================
published   settings of ``PolicyLossConfig`` that differ from the defaults
==========  =========================================================================
the report  none: PPO's clipped ratio, advantages against the token-weighted mean
GRPO        baseline="mean", divide_by_std=True, clip_high=0.2, normalization="sequence",
            kl_weight=0.04
Dr.GRPO     baseline="mean", clip_high=0.2
RLOO        baseline="leave_one_out"
DAPO        baseline="mean", divide_by_std=True, clip_high=0.28, normalization="tokens"
GSPO        baseline="mean", divide_by_std=True, ratio="sequence", normalization="sequence",
            clip_low=3e-4, clip_high=4e-4
CISPO       baseline="mean", divide_by_std=True, surrogate="cispo", normalization="tokens",
            clip_low=1.0 (no lower bound); its upper bound was not published
==========  =========================================================================

RLOO is published without a ratio; here it is clipped as everywhere. Truncated importance weights
(``importance_cap``) go with any of them, and so does ``kl_weight``; both see only what is in the
batch: groups whose returns are equal are not. B rows, T positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cwm_jax.config import ExecutionConfig, ModelConfig, PolicyLossConfig, RunConfig
from cwm_jax.model.context import row_layout
from cwm_jax.model.head import token_logprobs
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params, hidden_states
from cwm_jax.sharding import BATCH_AXES, shard
from cwm_jax.training.losses import Batch
from cwm_jax.training.step import Objective

REFERENCE = "reference_logprobs"  # key of a batch: of the targets, under the starting policy
_MAXIMA = ("ratio_max", "mismatch_max")  # of ``PolicySums``


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicySums:
    """Sums over the action tokens of some rows; ``add_sums`` joins those of several."""

    objective: Float[Array, ""]
    """To be minimised; the caller divides it by ``divisor``."""
    num_actions: Float[Array, ""]
    ratio: Float[Array, ""]
    """The one that is clipped."""
    ratio_max: Float[Array, ""]
    clipped_low: Float[Array, ""]
    """Tokens whose ratio lies below the range while their advantage is negative: no gradient. With
    ``cispo``, all below it: a gradient of another weight."""
    clipped_high: Float[Array, ""]
    """Likewise above it, where the advantage is positive."""
    entropy: Float[Array, ""]
    """Of the predictions, in nats."""
    sampler_kl: Float[Array, ""]
    """Estimated KL of the sampler from the trainer's policy, in nats: ratio - 1 - log ratio."""
    reference_kl: Float[Array, ""]
    """Likewise of the trainer's policy from the starting one."""
    num_current: Float[Array, ""]
    """Action tokens that were drawn with the trainer's own weights."""
    mismatch: Float[Array, ""]
    """Of those, |log-probability - the sampler's|."""
    mismatch_max: Float[Array, ""]


def zero_sums() -> PolicySums:
    return PolicySums(*(jnp.zeros((), jnp.float32) for _ in dataclasses.fields(PolicySums)))


def add_sums(a: PolicySums, b: PolicySums) -> PolicySums:
    """Those of the rows of both: maxima are of both, the rest is added."""
    both = jax.tree.map(jnp.add, a, b)
    maxima = {name: jnp.maximum(getattr(a, name), getattr(b, name)) for name in _MAXIMA}
    return dataclasses.replace(both, **maxima)


def batch_logprobs(
    params: Params,
    model_config: ModelConfig,
    batch: Batch,
    *,
    temperature: float = 1.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log-probability of each target, entropy of each prediction), in the rows' own order.

    ``temperature`` divides the logits. No more of them exist at a time than for
    ``execution.loss_chunk_tokens`` tokens.
    """
    layout = row_layout(execution.context_layout)
    rows = {
        name: layout.arrange(batch[name])
        for name in ("tokens", "targets", "positions", "segment_ids")
    }
    x = hidden_states(
        params,
        model_config,
        rows["tokens"],
        positions=rows["positions"],
        segment_ids=rows["segment_ids"],
        execution=execution,
        layout=layout,
    )
    kernel = params["lm_head"]["kernel"].astype(x.dtype)
    chunk_tokens = execution.loss_chunk_tokens
    found: Any = token_logprobs(x, kernel, rows["targets"], chunk_tokens, temperature)
    logprobs, entropy = (shard(layout.restore(y), *BATCH_AXES) for y in found)
    return logprobs, jax.lax.stop_gradient(entropy)


def policy_loss_sums(
    params: Params,
    model_config: ModelConfig,
    batch: Batch,
    loss: PolicyLossConfig,
    *,
    temperature: float = 1.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> PolicySums:
    """The sums behind the objective; exact under packing and gradient accumulation.

    Args:
        params, model_config: the policy.
        batch: of ``cwm_jax.rl.batches``, ``[B, T]`` each; with ``kl_weight`` also ``REFERENCE``.
        loss: the settings; ``baseline`` and ``divide_by_std`` are in the advantages already.
        temperature: of the sampler, whose log-probabilities are those after the division by it.
        execution: speed and rounding.
    """
    logprobs, entropy = batch_logprobs(
        params, model_config, batch, temperature=temperature, execution=execution
    )
    return sums_from_logprobs(logprobs, entropy, batch, loss)


def sums_from_logprobs(
    logprobs: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    batch: Batch,
    loss: PolicyLossConfig,
) -> PolicySums:
    """``policy_loss_sums`` of a policy that gave the targets these log-probabilities."""
    mask = batch["action_mask"]
    log_ratio = (logprobs - batch["behaviour_logprobs"]) * mask
    held = jax.lax.stop_gradient(log_ratio)
    objective, ratio = _surrogate(log_ratio, logprobs, batch, loss)
    reference_kl = jnp.zeros((), jnp.float32)
    if loss.kl_weight:
        kl = _k3((batch[REFERENCE] - logprobs) * mask)
        reference_kl = jax.lax.stop_gradient(kl.sum())
        objective += loss.kl_weight * kl
    weights = batch["token_weights"] if loss.normalization == "sequence" else mask
    current = batch["is_current"] * mask
    below, above = _clipped(ratio, batch["advantages"], loss)
    return PolicySums(
        objective=(objective * weights).sum(),
        num_actions=mask.sum(),
        ratio=(ratio * mask).sum(),
        ratio_max=(ratio * mask).max(),
        clipped_low=(below * mask).sum(),
        clipped_high=(above * mask).sum(),
        entropy=(entropy * mask).sum(),
        sampler_kl=_k3(held).sum(),
        reference_kl=reference_kl,
        num_current=current.sum(),
        mismatch=(jnp.abs(held) * current).sum(),
        mismatch_max=(jnp.abs(held) * current).max(),
    )


def policy_objective(config: RunConfig) -> Objective:
    """For ``make_train_step``: the run's ``rl.loss``.

    ``constant`` divides by ``normalization_tokens`` for each row of the batch, of all its
    micro-batches; None by the tokens for which it has room. The report divides what a rank has in a
    row of 131,072 tokens by as many, and takes the mean over ranks, which is that.
    """
    assert config.rl is not None
    loss = config.rl.loss

    def divisor(batch: Batch) -> jax.Array:
        mask = batch["action_mask"]
        if loss.normalization == "constant":
            T = mask.shape[-1]
            return jnp.float32(mask.size // T * (loss.normalization_tokens or T))
        counted = mask if loss.normalization == "tokens" else batch["token_weights"]
        return jnp.maximum(counted.sum(), 1.0)

    def sums(params, micro_batch: Batch) -> PolicySums:
        return policy_loss_sums(params, config.model, micro_batch, loss, execution=config.execution)

    return Objective(sums=sums, zero=zero_sums, add=add_sums, divisor=divisor, metrics=_metrics)


def _surrogate(log_ratio, logprobs, batch: Batch, loss: PolicyLossConfig):
    """(objective of each token, to be minimised; its ratio without gradient)."""
    mask, advantages = batch["action_mask"], batch["advantages"]
    weight = 1.0
    if loss.importance_cap is not None:
        # What the trainer's own weights gave before this step is what they give in it.
        weight = jnp.minimum(jnp.exp(jax.lax.stop_gradient(log_ratio)), loss.importance_cap)
        log_ratio = log_ratio - jax.lax.stop_gradient(log_ratio)
    if loss.ratio == "sequence":
        log_ratio = _trajectory_mean(log_ratio, batch["segment_ids"], mask)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - loss.clip_low, 1 + loss.clip_high)
    if loss.surrogate == "cispo":
        gain = jax.lax.stop_gradient(clipped) * advantages * logprobs
    else:
        gain = jnp.minimum(ratio * advantages, clipped * advantages)
    return -weight * gain * mask, jax.lax.stop_gradient(ratio)


def _clipped(ratio, advantages, loss: PolicyLossConfig):
    """(whether the clipping from below acts on a token, whether that from above does)."""
    below, above = ratio < 1 - loss.clip_low, ratio > 1 + loss.clip_high
    if loss.surrogate == "cispo":
        return below, above
    return below & (advantages < 0), above & (advantages > 0)


def _trajectory_mean(values, segment_ids, mask):
    """``[B, T]``: at each token the mean over the action tokens of its trajectory."""

    def of_row(values, segments, mask):
        num_segments = segments.shape[0] + 1
        total = jax.ops.segment_sum(values * mask, segments, num_segments)
        count = jax.ops.segment_sum(mask, segments, num_segments)
        return (total / jnp.maximum(count, 1.0))[segments]

    return jax.vmap(of_row)(values, segment_ids, mask)


def _k3(log_ratio):
    """An estimate of a KL divergence from samples that is never negative."""
    return jnp.exp(log_ratio) - 1 - log_ratio


def _metrics(sums: PolicySums, divisor: jax.Array) -> dict[str, jax.Array]:
    count, current = jnp.maximum(sums.num_actions, 1.0), jnp.maximum(sums.num_current, 1.0)
    return {
        "num_targets": sums.num_actions,
        "entropy": sums.entropy / count,
        "ratio": sums.ratio / count,
        "ratio_max": sums.ratio_max,
        "clip_low_fraction": sums.clipped_low / count,
        "clip_high_fraction": sums.clipped_high / count,
        "sampler_kl": sums.sampler_kl / count,
        "reference_kl": sums.reference_kl / count,
        "mismatch": sums.mismatch / current,
        "mismatch_max": sums.mismatch_max,
    }
