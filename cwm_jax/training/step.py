"""One optimizer step as a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cwm_jax.config import RunConfig
from cwm_jax.training.losses import Batch, LossSums, loss_sums
from cwm_jax.training.optimizer import make_optimizer
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    run_config: RunConfig,
    *,
    plan: Plan | None = None,
    optimizer: optax.GradientTransformation | None = None,
    attention_cap: int | None = None,
) -> Step:
    """Returns ``step(state, batch) -> (state, metrics)``; jit it with ``donate_argnums=0``.

    With ``execution.optimizer_memory="pinned_host"`` also with ``out_shardings`` of
    ``state_shardings``, which bring the moments back to the host.

    The batch's arrays are ``[B, T]``, or ``[A, B, T]`` for A micro-batches whose gradients are
    added before the update. Losses are sums over all counted tokens divided by their number, so A
    changes nothing but memory. A step whose loss or gradient is not finite leaves parameters and
    optimizer state as they were and is counted.

    Args:
        run_config: the run.
        plan: the run's derived numbers; None derives them for the devices present.
        optimizer: replaces the run's AdamW, see ``init_state``.
        attention_cap: keys that a query of a global layer sees in this step, its own included (of
            ``LengthBucket``); None does not cap.
    """
    plan = plan or make_plan(run_config)
    optimizer = optimizer or make_optimizer(run_config.optimizer)
    clip = run_config.optimizer.gradient_clipping_threshold

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, sums = _gradients(state.params, batch, run_config, attention_cap)
        count = jnp.maximum(sums.num_targets, 1.0)
        grad_norm = optax.tree.norm(grads)
        loss = sums.objective / count
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if clip is not None:
            factor = jnp.minimum(1.0, clip / jnp.maximum(grad_norm, 1e-12))
            grads = jax.tree.map(lambda g: g * factor, grads)
        learning_rate = plan.learning_rate(state.step)
        old_opt_state = state.opt_state
        if run_config.execution.optimizer_memory != "device":
            old_opt_state = jax.device_put(old_opt_state, jax.memory.Space.Device)
        updates, opt_state = optimizer.update(grads, old_opt_state, state.params)
        params = jax.tree.map(
            lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates
        )
        skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
        new_state = dataclasses.replace(
            state,
            params=_where(finite, params, state.params),
            opt_state=_where(finite, opt_state, old_opt_state),
            step=state.step + 1,
            skipped_steps=state.skipped_steps + skipped,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1).astype(jnp.int32),
        )
        metrics = {
            "loss": loss,
            "cross_entropy": sums.cross_entropy / count,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "num_targets": sums.num_targets,
            "skipped_steps": new_state.skipped_steps,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return step


def make_eval_step(run_config: RunConfig) -> Callable[[Any, Batch], LossSums]:
    """Returns ``eval_step(params, batch) -> LossSums`` without z-loss."""

    def eval_step(params, batch: Batch) -> LossSums:
        return loss_sums(params, run_config.model, batch, execution=run_config.execution)

    return eval_step


def compiler_options() -> dict[str, str]:
    """Options of XLA for ``jax.jit`` on the present backend.

    On CPU, matrix products through Eigen instead of YNNPACK: a step is 12 % faster with them
    (measured on jax 0.10.2, docs/LOG.md). Elsewhere none.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": ""}


def _gradients(
    params, batch: Batch, run_config: RunConfig, attention_cap: int | None
) -> tuple[Any, LossSums]:
    """Gradient of the mean loss, in float32, and the sums over all micro-batches."""
    if batch["tokens"].ndim == 2:
        batch = jax.tree.map(lambda x: x[None], batch)
    count = jnp.maximum(batch["loss_mask"].astype(jnp.float32).sum(), 1.0)

    def objective(params, micro_batch):
        sums = loss_sums(
            params,
            run_config.model,
            micro_batch,
            z_loss=run_config.optimizer.z_loss,
            execution=run_config.execution,
            attention_cap=attention_cap,
        )
        return sums.objective / count, sums

    def micro_step(carry, micro_batch):
        grads, sums = jax.grad(objective, has_aux=True)(params, micro_batch)
        grads = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), carry[0], grads)
        return (grads, jax.tree.map(jnp.add, carry[1], sums)), None

    if batch["tokens"].shape[0] == 1:
        micro_batch = jax.tree.map(lambda x: x[0], batch)
        grads, sums = jax.grad(objective, has_aux=True)(params, micro_batch)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    zero = jnp.zeros((), jnp.float32)
    (grads, sums), _ = jax.lax.scan(micro_step, (zeros, LossSums(zero, zero, zero)), batch)
    return grads, sums


def _where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
