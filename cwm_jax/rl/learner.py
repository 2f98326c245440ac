"""The steps of a reinforcement-learning run: a batch of trajectories, an update, new weights."""

from __future__ import annotations

import collections
import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cwm_jax.config import RunConfig
from cwm_jax.distributed import Hosts
from cwm_jax.rl.advantages import group_advantages
from cwm_jax.rl.batches import Learnable, RowPacker
from cwm_jax.rl.evaluation import Evaluator
from cwm_jax.rl.objective import REFERENCE, batch_logprobs, policy_objective
from cwm_jax.rl.playing.players import Group
from cwm_jax.rl.playing.together import Together
from cwm_jax.rl.report import format_rl_line
from cwm_jax.rl.selection import REASONS, rejection, shaped_return
from cwm_jax.rl.trajectory import Trajectory, write_trajectories
from cwm_jax.rl.weights import WeightCopies
from cwm_jax.sharding import put_batch
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.metrics import MetricsLog, print_line
from cwm_jax.training.plan import Plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import TrainState, state_shardings
from cwm_jax.training.step import compiler_options, make_train_step

TRAJECTORIES = "trajectories"  # folder: one file for the steps between two checkpoints


class NothingToLearnError(RuntimeError):
    """No group of a whole step had returns that differ."""


@dataclasses.dataclass
class _Played:
    """What the groups of one step were; not all of them are learnt from."""

    groups: int = 0
    zero_advantage_groups: int = 0
    rejected: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    trajectories: list[Trajectory] = dataclasses.field(default_factory=list)

    def take(self, group: Group, rejected: collections.Counter, *, taught: bool) -> None:
        self.groups += 1
        self.zero_advantage_groups += not taught
        self.rejected += rejected
        self.trajectories += group.trajectories


class Learner:
    """The loop itself."""

    def __init__(
        self, config, plan, mesh, players, copies, evaluator, log, saver, goodput, folder, hosts
    ):
        self._config: RunConfig = config
        self._rl = config.rl
        self._plan: Plan = plan
        self._mesh = mesh
        self._players: Together = players
        self._copies: WeightCopies = copies
        self._evaluator: Evaluator = evaluator
        self._log: MetricsLog = log
        self._saver: ckpt.Checkpointer = saver
        self._goodput: Goodput = goodput
        self._folder: Path = folder
        self._hosts: Hosts = hosts
        self._left: Group | None = None  # had no room in the batch before
        self._programs: dict[int, Any] = {}
        self._reference: Any = None
        self._trajectory_file = Path()

    def restore(self, loader_state: dict[str, Any]) -> None:
        """Takes what a checkpoint says of the groups that are still to be learnt from."""
        left = loader_state["left"]
        self._left = Group.from_json(left) if left else None
        self._players.restore(loader_state["players"])

    def keep_close_to(self, params: Any) -> None:
        """Takes the policy that ``rl.loss.kl_weight`` penalises a divergence from."""
        self._reference = functools.partial(_logprobs_of(self._config), params)

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, bool]:
        """Runs to the end of the plan or a signal; returns the state and whether it is the end."""
        total, step = self._plan.total_steps, int(state.step)
        self._drop_trajectories_from(step)
        self._begin_file(step)
        self._goodput.begin("step")
        if step == 0:
            line = {"step": 0, "tokens": self._plan.tokens_before(0)}
            self._write(line | self._evaluated(state, 0))
        while step < total:
            started = time.perf_counter()
            batch, played = self._gather(step)
            gathered = time.perf_counter()
            self._saver.check()
            state, metrics = self._update(state, batch, step)
            step += 1
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self._players.update_weights(self._copies.of(state.params), step)
            line = {"step": step, "tokens": self._plan.tokens_before(step), **values}
            line |= self._played_fields(played, step - 1)
            line |= {
                "play_time_s": gathered - started,
                "step_time_s": time.perf_counter() - started,
            }
            if step % self._rl.eval_period == 0 or step == total:
                line |= self._evaluated(state, step)
            self._write(line)
            if self._hosts.is_first:
                write_trajectories(self._trajectory_file, played.trajectories)
            stopping = stop.reached(step)
            if stopping or step % self._config.checkpoint.checkpoint_period == 0 or step == total:
                self._save(step, state)
            if stopping and step < total:
                print_line(f"{stop.name}: saved step {step} and stopped; the same command resumes")
                break
        with self._goodput.during("checkpoint"):
            self._saver.wait()
        self._goodput.write(step, finished=step >= total)
        return state, step >= total

    # ------------------------------------------------------------ batches

    def _gather(self, version: int) -> tuple[dict[str, np.ndarray], _Played]:
        """Groups until the rows of the step are full."""
        A = self._plan.stage(version).accumulation_steps
        T = self._config.batch.max_target_length
        packer, played = RowPacker(A * self._plan.micro_batch_rows, T), _Played()
        while played.groups < self._rl.max_groups_per_step:
            group = self._left or self._players.next_group()
            learnables, rejected = self._learnables(group, version)
            if learnables and not packer.add(learnables):
                if not packer.num_trajectories:
                    self._refuse(learnables)
                self._left = group  # it counts for the step that learns from it
                break
            self._left = None
            played.take(group, rejected, taught=bool(learnables))
        if not packer.num_trajectories:
            raise NothingToLearnError(
                f"none of {played.groups} groups had returns that differ (rejected: "
                f"{dict(played.rejected)}); expected some: take easier or harder tasks, raise "
                "rl.group_size, or look at `python -m cwm_jax rl show`"
            )
        rows = packer.batch(version)
        return {k: v.reshape(A, -1, T) for k, v in rows.items()}, played

    def _learnables(
        self, group: Group, version: int
    ) -> tuple[list[Learnable], collections.Counter]:
        """(trajectories that teach something, none where all returns are equal; rejections)."""
        kept, returns, rejected = [], [], collections.Counter()
        for trajectory in group.trajectories:
            reason = rejection(
                trajectory,
                self._rl.filters,
                version=version,
                vocab_size=self._config.model.vocab_size,
            )
            if reason is None:
                kept.append(trajectory)
                returns.append(shaped_return(trajectory, self._rl.length_reward, step=version))
            else:
                rejected[reason] += 1
        lengths = [trajectory.num_action_tokens for trajectory in kept]
        advantages = group_advantages(returns, lengths, self._rl.loss)
        learnables = [
            Learnable(trajectory=trajectory, advantage=float(advantage))
            for trajectory, advantage in zip(kept, advantages, strict=True)
            if advantage  # report: what teaches nothing takes no room
        ]
        return learnables, rejected

    def _refuse(self, learnables: list[Learnable]) -> None:
        tokens = sum(learnable.trajectory.num_tokens for learnable in learnables)
        rows = self._plan.micro_batch_rows
        raise ValueError(
            f"a group of {len(learnables)} trajectories has {tokens} tokens and does not fit a "
            f"batch (micro-batches of {rows} rows x {self._config.batch.max_target_length}); "
            "expected room for a group: raise batch.global_batch_tokens, or lower rl.group_size"
        )

    # ------------------------------------------------------------ updates

    def _update(self, state: TrainState, batch: dict[str, np.ndarray], step: int):
        arrays = put_batch(batch, self._mesh)
        if self._reference is not None:
            arrays[REFERENCE] = self._reference(arrays)
        A = batch["tokens"].shape[0]
        if A not in self._programs:
            with self._goodput.during("compile"):
                self._programs[A] = self._compile(state, arrays)
        return self._programs[A](state, arrays)

    def _compile(self, state: TrainState, arrays):
        step = jax.jit(
            make_train_step(
                self._config, plan=self._plan, objective=policy_objective(self._config)
            ),
            donate_argnums=0,
            out_shardings=(state_shardings(self._config, self._mesh), None),
            compiler_options=compiler_options(),
        )
        start = time.perf_counter()
        compiled = step.lower(state, arrays).compile()
        print_line(f"compiled the step in {time.perf_counter() - start:.1f} s")
        return compiled

    # ------------------------------------------------------------ reports

    def _evaluated(self, state: TrainState, step: int) -> dict[str, Any]:
        with self._goodput.during("evaluation"):
            found = self._evaluator.evaluate(state.params, step)
        fields: dict[str, Any] = {}
        for evaluation in found:
            fields[f"eval_{evaluation.environment}"] = evaluation.accuracy
            fields[f"eval_{evaluation.environment}_tokens"] = evaluation.mean_action_tokens
        return fields

    def _played_fields(self, played: _Played, version: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "groups": played.groups,
            "zero_advantage_groups": played.zero_advantage_groups,
            "episodes": len(played.trajectories),
        }
        for reason in REASONS:
            fields[f"rejected_{reason}"] = played.rejected[reason]
        whole = [t for t in played.trajectories if not t.is_void]
        if whole:
            staleness = [version - t.last_version for t in whole]
            fields["staleness"] = statistics.fmean(staleness)
            fields["staleness_max"] = max(staleness)
            fields["action_tokens"] = statistics.fmean(t.num_action_tokens for t in whole)
        for environment in self._rl.environments:
            own = [t for t in whole if t.environment == environment.name]
            if own:
                name = environment.name
                fields[f"reward_{name}"] = statistics.fmean(t.total_reward for t in own)
                fields[f"solve_rate_{name}"] = statistics.fmean(t.passed for t in own)
        return fields

    def _write(self, line: dict[str, Any]) -> None:
        line["time_s"] = time.time()
        self._log.write(line)
        step, total = line["step"], self._plan.total_steps
        evaluated = any(name.startswith("eval_") for name in line)
        if step in (1, total) or step % self._config.logging.log_period == 0 or evaluated:
            print_line(format_rl_line(line, total))

    def _save(self, step: int, state: TrainState) -> None:
        self._log.sync()
        left = self._left.to_json() if self._left else None
        with self._goodput.during("checkpoint"):
            loader_state = {"players": self._players.state(), "left": left}
            record = ckpt.RunRecord(step, self._config, ckpt.batches(self._plan), loader_state)
            self._saver.save(state, record)
        self._goodput.write(step)
        self._begin_file(step)

    def _begin_file(self, step: int) -> None:
        self._trajectory_file = self._folder / TRAJECTORIES / f"{step:08d}.jsonl"

    def _drop_trajectories_from(self, step: int) -> None:
        """Those of steps that a killed process did after the checkpoint are played again."""
        if self._hosts.is_first:
            for path in sorted((self._folder / TRAJECTORIES).glob("*.jsonl")):
                if int(path.stem) >= step:
                    path.unlink()


def _logprobs_of(config: RunConfig):
    """(parameters, arrays of a batch) -> log-probabilities of its targets, ``[A, B, T]``."""

    @jax.jit
    def logprobs(params, arrays):
        def one(micro_batch):
            found, _ = batch_logprobs(params, config.model, micro_batch, execution=config.execution)
            return found

        return jax.lax.map(one, arrays)

    return logprobs
