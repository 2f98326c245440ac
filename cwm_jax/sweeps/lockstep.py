"""Many runs in one process and one compiled program.

The runs of a group read the same micro-batches in the same order; they differ in peak learning
rate, in how many micro-batches make a step, and so in their schedules. All of that comes as
arguments, so one program serves every run of a model, and a run is what ``train.py`` makes of its
config: the same rows, the same steps (tests/sweeps compare losses).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import RunConfig
from cwm_jax.training.losses import Batch, LossSums, loss_sums
from cwm_jax.training.optimizer import learning_rate_at
from cwm_jax.training.state import TrainState, init_state
from cwm_jax.training.step import compiler_options, make_eval_step, make_update

Together = Literal["one_by_one", "map", "vmap"]

# By backend; `python -m benchmarks.sweep` measures. On two CPU cores the three are alike (measured,
# docs/LOG.md), and one by one a kill costs one run, not a group; on the others it is assumed.
FASTEST: dict[str, Together] = {"cpu": "one_by_one", "gpu": "vmap", "tpu": "vmap"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LockstepState:
    """A run between two micro-batches: its state, and the sums of the step that is under way."""

    train: TrainState
    grads: Any
    objective: jax.Array
    num_targets: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was trained.

    Attributes:
        losses: [steps] of training, in nats per token, before each update.
        heldout_loss: in nats per token; not finite where the run diverged.
        skipped_steps: whose loss or gradient was not finite.
    """

    losses: np.ndarray
    heldout_loss: float
    skipped_steps: int


def init_lockstep(run_config: RunConfig, key: jax.Array) -> LockstepState:
    """A run before its first micro-batch; ``key`` as for ``init_state``."""
    train = init_state(run_config, key)
    return LockstepState(
        train=train,
        grads=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), train.params),
        objective=jnp.zeros((), jnp.float32),
        num_targets=jnp.zeros((), jnp.float32),
    )


def make_micro_step(
    run_config: RunConfig,
) -> Callable[..., tuple[LockstepState, jax.Array]]:
    """Returns ``step(state, micro_batch, learning_rate, is_update) -> (state, loss)``.

    It adds the micro-batch's gradient; where ``is_update``, it then takes the step of all that was
    added. The loss is the mean over the step so far.
    """
    update = make_update(run_config)
    gradients = jax.grad(functools.partial(_objective, run_config=run_config), has_aux=True)

    def step(
        state: LockstepState, micro_batch: Batch, learning_rate: jax.Array, is_update: jax.Array
    ) -> tuple[LockstepState, jax.Array]:
        grads, sums = gradients(state.train.params, micro_batch)
        grads = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), state.grads, grads)
        objective = state.objective + sums.objective
        num_targets = state.num_targets + sums.num_targets
        count = jnp.maximum(num_targets, 1.0)

        def updated() -> LockstepState:
            mean = jax.tree.map(lambda g: g / count, grads)
            train, _ = update(state.train, mean, objective / count, learning_rate)
            zero = jnp.zeros((), jnp.float32)
            return LockstepState(train, jax.tree.map(jnp.zeros_like, grads), zero, zero)

        def added() -> LockstepState:
            return LockstepState(state.train, grads, objective, num_targets)

        return jax.lax.cond(is_update, updated, added), objective / count

    return step


class Lockstep:
    """The programs of one model; each is compiled when it is first used.

    Args:
        run_config: of the model, the rows and everything that the runs have in common; rate, batch
            and tokens are the runs' own.
        together: how the runs of a group share the device.
    """

    def __init__(self, run_config: RunConfig, together: Together):
        self._config, self._together = run_config, together
        options = compiler_options()
        step = make_micro_step(run_config)
        many = {
            "one_by_one": step,
            "vmap": jax.vmap(step, in_axes=(0, None, 0, 0)),
            "map": functools.partial(_mapped, step),
        }
        self._step = jax.jit(many[together], donate_argnums=0, compiler_options=options)
        self._eval = jax.jit(make_eval_step(run_config), compiler_options=options)
        self._init = jax.jit(functools.partial(init_lockstep, run_config))

    def train(
        self,
        runs: Sequence[RunConfig],
        micro_batches: Iterator[Mapping[str, Any]],
        heldout: Sequence[Mapping[str, Any]],
    ) -> list[Finished]:
        """Trains the runs of a group from their seeds to their ends.

        Args:
            runs: that differ in seed, learning rate, batch and tokens alone.
            micro_batches: ``[B, T]`` each, as many as the longest run needs, or more.
            heldout: likewise, for the losses at the end.
        """
        schedules = [Schedule.of(run) for run in runs]
        states = self._begin(runs)
        found: list[Any] = []  # of each micro-batch each run's loss, fetched when all is done
        for number in range(max(s.num_micro_batches for s in schedules)):
            batch = jax.device_put(dict(next(micro_batches)))
            updates = [s.is_update(number) for s in schedules]
            rates = [s.rate(number) for s in schedules]
            states, losses = self._advance(states, batch, rates, updates)
            found.append(losses)
        fetched = np.asarray(jax.device_get(found), np.float32)
        return [
            Finished(
                losses=fetched[schedules[run].last_micro_batches, run],
                heldout_loss=self._heldout_loss(params, heldout),
                skipped_steps=int(skipped),
            )
            for run, (params, skipped) in enumerate(self._ends(states, len(runs)))
        ]

    def _begin(self, runs: Sequence[RunConfig]) -> Any:
        states = [self._init(jax.random.key(run.seed)) for run in runs]
        if self._together == "one_by_one":
            return states
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def _advance(
        self, states: Any, batch: Batch, rates: Sequence[float], updates: Sequence[bool]
    ) -> tuple[Any, Any]:
        """The states after a micro-batch, and each run's loss."""
        rate, update = np.asarray(rates, np.float32), np.asarray(updates)
        if self._together != "one_by_one":
            return self._step(states, batch, rate, update)
        moved = [self._step(s, batch, rate[n], update[n]) for n, s in enumerate(states)]
        return [state for state, _ in moved], [loss for _, loss in moved]

    def _ends(self, states: Any, count: int) -> Iterator[tuple[Any, jax.Array]]:
        for run in range(count):
            if self._together == "one_by_one":
                state = states[run]
            else:
                state = jax.tree.map(lambda leaf, run=run: leaf[run], states)
            yield state.train.params, state.train.skipped_steps

    def _heldout_loss(self, params: Any, heldout: Sequence[Mapping[str, Any]]) -> float:
        sums = [self._eval(params, dict(batch)) for batch in heldout]
        pairs = jax.device_get([(s.cross_entropy, s.num_targets) for s in sums])
        total, count = np.sum(pairs, axis=0) if pairs else (0.0, 0.0)
        return float(total) / max(float(count), 1.0)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of one run: ``rates`` of its steps, and how many micro-batches make one."""

    rates: np.ndarray
    accumulation_steps: int

    @classmethod
    def of(cls, run: RunConfig) -> Schedule:
        batch_tokens, optimizer = run.batch.global_batch_tokens, run.optimizer
        micro_tokens = int(run.batch.per_device_batch_size) * run.batch.max_target_length
        assert isinstance(batch_tokens, int) and isinstance(optimizer.learning_rate, float)
        assert not batch_tokens % micro_tokens and not optimizer.train_tokens % batch_tokens
        steps = optimizer.train_tokens // batch_tokens
        tokens = np.arange(1, steps + 1, dtype=np.float32) * batch_tokens
        rates = learning_rate_at(
            tokens,
            optimizer,
            peak=optimizer.learning_rate,
            horizon_tokens=optimizer.horizon_tokens or optimizer.train_tokens,
        )
        return cls(np.asarray(rates, np.float32), batch_tokens // micro_tokens)

    @property
    def num_micro_batches(self) -> int:
        return len(self.rates) * self.accumulation_steps

    @property
    def last_micro_batches(self) -> np.ndarray:
        """Of each step, [steps]."""
        return np.arange(1, len(self.rates) + 1) * self.accumulation_steps - 1

    def rate(self, micro_batch: int) -> float:
        """Of the step that it belongs to; 0 after the run's end."""
        step = micro_batch // self.accumulation_steps
        return float(self.rates[step]) if step < len(self.rates) else 0.0

    def is_update(self, micro_batch: int) -> bool:
        """Whether a step ends with it; none does once the run is at its end."""
        is_last = (micro_batch + 1) % self.accumulation_steps == 0
        return is_last and micro_batch < self.num_micro_batches


def _objective(params, micro_batch: Batch, *, run_config: RunConfig) -> tuple[Any, LossSums]:
    sums = loss_sums(
        params,
        run_config.model,
        micro_batch,
        z_loss=run_config.optimizer.z_loss,
        execution=run_config.execution,
    )
    return sums.objective, sums


def _mapped(step, states, micro_batch, rates, updates):
    return jax.lax.map(lambda run: step(run[0], micro_batch, *run[1:]), (states, rates, updates))
