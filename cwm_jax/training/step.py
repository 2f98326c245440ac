"""One optimizer step as a pure function of state and batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cwm_jax.config import OptimizerConfig, RunConfig
from cwm_jax.training.losses import Batch, LossSums, loss_sums
from cwm_jax.training.optimizer import make_optimizer
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
Update = Callable[[TrainState, Any, jax.Array, Any], tuple[TrainState, jax.Array]]


class NoProgressError(RuntimeError):
    """A run learns nothing any more; its checkpoints are as they were."""


class NonFiniteError(NoProgressError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimises: a sum over micro-batches, divided by what the whole batch gives.

    Attributes:
        sums: of parameters and a micro-batch: a pytree of scalars; its field ``objective`` is
            differentiated.
        zero: the sums of nothing.
        add: two of them, of different micro-batches.
        divisor: of the whole batch, its micro-batches included.
        metrics: to be logged, of all sums and the divisor.
    """

    sums: Callable[[Any, Batch], Any]
    zero: Callable[[], Any]
    add: Callable[[Any, Any], Any]
    divisor: Callable[[Batch], jax.Array]
    metrics: Callable[[Any, jax.Array], dict[str, jax.Array]]


def next_token_objective(run_config: RunConfig, attention_cap: int | None = None) -> Objective:
    """The mean loss of all counted tokens, and z-loss; arguments as for ``make_train_step``."""

    def sums(params, micro_batch: Batch) -> LossSums:
        return loss_sums(
            params,
            run_config.model,
            micro_batch,
            z_loss=run_config.optimizer.z_loss,
            execution=run_config.execution,
            attention_cap=attention_cap,
        )

    def metrics(sums: LossSums, count: jax.Array) -> dict[str, jax.Array]:
        return {"cross_entropy": sums.cross_entropy / count, "num_targets": sums.num_targets}

    def zero() -> LossSums:
        return LossSums(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    return Objective(
        sums=sums,
        zero=zero,
        add=functools.partial(jax.tree.map, jnp.add),
        divisor=lambda batch: jnp.maximum(batch["loss_mask"].astype(jnp.float32).sum(), 1.0),
        metrics=metrics,
    )


def make_train_step(
    run_config: RunConfig,
    *,
    plan: Plan | None = None,
    optimizer: optax.GradientTransformation | None = None,
    attention_cap: int | None = None,
    objective: Objective | None = None,
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
        objective: what is minimised; None is ``next_token_objective``.
    """
    objective = objective or next_token_objective(run_config, attention_cap)
    plan = plan or make_plan(run_config)
    update = make_update(run_config, optimizer=optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        divisor = objective.divisor(batch)
        grads, sums = _gradients(objective, divisor, state.params, batch)
        loss = sums.objective / divisor
        learning_rate = plan.learning_rate(state.step)
        new_state, grad_norm = update(state, grads, loss, learning_rate)
        metrics = {
            "loss": loss,
            **objective.metrics(sums, divisor),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped_steps": new_state.skipped_steps,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return step


def make_update(
    run_config: RunConfig, *, optimizer: optax.GradientTransformation | None = None
) -> Update:
    """Returns ``update(state, grads, loss, learning_rate) -> (state, gradient norm)``.

    The gradients are float32, of the mean loss; they are clipped here. Where the loss or their norm
    is not finite, parameters and optimizer state stay and the step is counted as skipped.

    Args:
        run_config: clipping, optimizer and where its state lies.
        optimizer: replaces the run's AdamW.
    """
    optimizer = optimizer or make_optimizer(run_config.optimizer)
    clip = run_config.optimizer.gradient_clipping_threshold

    def update(state: TrainState, grads, loss, learning_rate) -> tuple[TrainState, jax.Array]:
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if clip is not None:
            factor = jnp.minimum(1.0, clip / jnp.maximum(grad_norm, 1e-12))
            grads = jax.tree.map(lambda g: g * factor, grads)
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
        return new_state, grad_norm

    return update


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


def _gradients(objective: Objective, divisor, params, batch: Batch) -> tuple[Any, Any]:
    """Gradient of the divided objective, in float32, and the sums over all micro-batches."""
    if batch["tokens"].ndim == 2:
        batch = jax.tree.map(lambda x: x[None], batch)

    def divided(params, micro_batch):
        sums = objective.sums(params, micro_batch)
        return sums.objective / divisor, sums

    gradients = jax.grad(divided, has_aux=True)

    def micro_step(carry, micro_batch):
        grads, sums = gradients(params, micro_batch)
        grads = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), carry[0], grads)
        return (grads, objective.add(carry[1], sums)), None

    if batch["tokens"].shape[0] == 1:
        grads, sums = gradients(params, jax.tree.map(lambda x: x[0], batch))
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    (grads, sums), _ = jax.lax.scan(micro_step, (zeros, objective.zero()), batch)
    return grads, sums


def _where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def check_finite(config: OptimizerConfig, step: int, metrics: Mapping[str, float]) -> None:
    """Looks at the metrics of a step.

    Raises:
        NonFiniteError: it is the last of ``max_nonfinite_steps`` that were skipped in a row.
    """
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row >= config.max_nonfinite_steps:
        raise NonFiniteError(
            f"steps {step - in_a_row + 1} to {step} all had a loss or gradient that is not finite "
            f"(loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); each was skipped, so "
            "the weights are those before them. Lower optimizer.learning_rate or "
            "gradient_clipping_threshold, look at the data of these steps, or raise "
            "optimizer.max_nonfinite_steps; the same command resumes from the newest checkpoint"
        )
