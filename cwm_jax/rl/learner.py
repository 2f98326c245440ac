"""The steps of a reinforcement-learning run: a batch of trajectories, an update, new weights."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from cwm_jax.config import RunConfig
from cwm_jax.distributed import Hosts
from cwm_jax.rl.batches import RowPacker
from cwm_jax.rl.evaluation import Evaluator
from cwm_jax.rl.objective import REFERENCE, batch_logprobs, policy_objective
from cwm_jax.rl.playing.players import Group
from cwm_jax.rl.playing.together import Together
from cwm_jax.rl.report import format_rl_line, why_nothing
from cwm_jax.rl.selection import REASONS, TOO_LONG, lessons
from cwm_jax.rl.trajectory import Trajectory, write_trajectories
from cwm_jax.rl.weights import WeightCopies
from cwm_jax.sharding import put_batch
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.metrics import MetricsLog, print_line
from cwm_jax.training.plan import Plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import TrainState, state_shardings
from cwm_jax.training.step import (
    NoProgressError,
    check_finite,
    compiler_options,
    make_train_step,
)

TRAJECTORIES = "trajectories"  # folder: one file for the steps between two checkpoints
_NOTE_GROUPS = 64  # assumed: after so many without anything to learn from a line says so


class NothingToLearnError(NoProgressError):
    """No group of a whole step taught anything."""


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
        self._programs: dict[int, Any] = {}
        self._reference: Any = None
        self._trajectory_file = Path()
        self._saved_step = 0

    def keep_close_to(self, params: Any) -> None:
        """Takes the policy that ``rl.loss.kl_weight`` penalises a divergence from."""
        self._reference = functools.partial(_logprobs_of(self._config), params)

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, bool]:
        """Runs to the end of the plan or a signal; returns the state and whether it is the end."""
        total, step = self._plan.total_steps, int(state.step)
        self._saved_step = step
        self._drop_trajectories_from(step)
        self._begin_file(step)
        self._goodput.begin("step")
        if step == 0:
            line = {"step": 0, "tokens": self._plan.tokens_before(0)}
            self._write(line | self._evaluated(state, 0))
        while step < total:
            started = time.perf_counter()
            gathered = self._gather(step, stop)
            if gathered is None:
                if step and step != self._saved_step:
                    self._save(step, state)
                break
            played_at = time.perf_counter()
            self._saver.check()
            batch, played = gathered
            state, metrics = self._update(state, batch, step)
            step += 1
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self._players.note(played.trajectories)
            self._players.update_weights(self._copies.of(state.params), step)
            line = {"step": step, "tokens": self._plan.tokens_before(step)}
            line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
            line |= self._played_fields(played, step - 1)
            line |= {
                "play_time_s": played_at - started,
                "step_time_s": time.perf_counter() - started,
            }
            if step % self._rl.eval_period == 0 or step == total:
                line |= self._evaluated(state, step)
            self._write(line)
            if self._hosts.is_first:
                write_trajectories(self._trajectory_file, played.trajectories)
            check_finite(self._config.optimizer, step, values)
            if step % self._config.checkpoint.checkpoint_period == 0 or step == total:
                self._save(step, state)
        if step < total:
            done = f"saved step {step}" if step else "no step was done"
            print_line(f"{stop.name}: {done} and stopped; the same command resumes")
        with self._goodput.during("checkpoint"):
            self._saver.wait()
        self._goodput.write(step, finished=step >= total)
        return state, step >= total

    # ------------------------------------------------------------ batches

    def _gather(
        self, version: int, stop: StopRequest
    ) -> tuple[dict[str, np.ndarray], _Played] | None:
        """Groups until the rows of the step are full; None: it is time to stop, all are kept."""
        A = self._plan.stage(version).accumulation_steps
        T = self._config.batch.max_target_length
        packer, played = RowPacker(A * self._plan.micro_batch_rows, T), _Played()
        taken = []
        while played.groups < self._rl.max_groups_per_step:
            group = None if stop.reached() else self._players.next_group(stop.reached)
            if group is None:
                self._players.put_back(taken)
                return None
            learnables, rejected = lessons(
                group.trajectories,
                self._rl,
                version=version,
                vocab_size=self._config.model.vocab_size,
            )
            if learnables and not packer.add(learnables):
                if packer.num_trajectories:
                    self._players.put_back([group])  # it counts for the step that learns from it
                    break
                rejected[TOO_LONG] += len(learnables)
                learnables = []
            taken.append(group)
            played.take(group, rejected, taught=bool(learnables))
            if not packer.num_trajectories and played.groups % _NOTE_GROUPS == 0:
                print_line(f"{played.groups} groups played, and nothing to learn from them yet")
        if not packer.num_trajectories:
            self._give_up(version, played)
        rows = packer.batch(version)
        return {k: v.reshape(A, -1, T) for k, v in rows.items()}, played

    def _give_up(self, version: int, played: _Played) -> NoReturn:
        if self._hosts.is_first:
            write_trajectories(self._trajectory_file, played.trajectories)
        why = why_nothing(played.trajectories, played.rejected)
        raise NothingToLearnError(
            f"{played.groups} groups taught nothing in step {version + 1}: {why}. Look at "
            f"`python -m cwm_jax rl show {self._folder}`; the same command resumes"
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
        with self._goodput.during("evaluation"), self._players.paused():
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
            "lost_groups": self._players.num_lost_groups,
        }
        for reason in (*REASONS, TOO_LONG):
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
        with self._goodput.during("checkpoint"):
            loader_state = {"players": self._players.state()}
            record = ckpt.run_record(self._plan, step, loader_state)
            self._saver.save(state, record)
        self._goodput.write(step)
        self._saved_step = step
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
