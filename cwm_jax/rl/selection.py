"""Which trajectories are learnt from, what right answers are worth, which tasks are asked."""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cwm_jax.config import CurriculumConfig, FilterConfig, LengthRewardConfig, RLConfig
from cwm_jax.rl.advantages import group_advantages
from cwm_jax.rl.batches import Learnable
from cwm_jax.rl.trajectory import Trajectory

REASONS = ("failed", "crashed", "empty", "stale", "gibberish")
TOO_LONG = "too_long"  # of all that a group would teach: it does not fit a whole batch


def lessons(
    trajectories: Sequence[Trajectory], config: RLConfig, *, version: int, vocab_size: int
) -> tuple[list[Learnable], collections.Counter[str]]:
    """(what a group teaches: none where all returns are equal; how many are rejected, and why).

    Divisors that count trajectories or tokens, and a divergence, take those without advantage in.

    Args:
        trajectories: the group's.
        config: of the run.
        version: of the weights that would learn.
        vocab_size: of the model.
    """
    kept, returns, rejected = [], [], collections.Counter()
    for trajectory in trajectories:
        reason = rejection(trajectory, config.filters, version=version, vocab_size=vocab_size)
        if reason is None:
            kept.append(trajectory)
            returns.append(shaped_return(trajectory, config.length_reward, step=version))
        else:
            rejected[reason] += 1
    lengths = [trajectory.num_action_tokens for trajectory in kept]
    advantages = group_advantages(returns, lengths, config.loss)
    skips_single = False
    if config.filters.skip_zero_advantage:
        if not np.any(advantages):
            return [], rejected
        skips_single = config.loss.normalization == "constant" and not config.loss.kl_weight
    found = [
        Learnable(trajectory=trajectory, advantage=float(advantage))
        for trajectory, advantage in zip(kept, advantages, strict=True)
        if advantage or not skips_single
    ]
    return found, rejected


def rejection(
    trajectory: Trajectory, filters: FilterConfig, *, version: int, vocab_size: int
) -> str | None:
    """Why it is not learnt from, one of ``REASONS``; None if it is.

    Args:
        trajectory: the whole of it.
        filters: the limits.
        version: of the weights that would learn.
        vocab_size: of the model.
    """
    if trajectory.is_void:
        return trajectory.ending
    if not trajectory.num_action_tokens:
        return "empty"
    if version - trajectory.last_version > filters.max_staleness_steps:
        return "stale"
    return "gibberish" if _is_gibberish(trajectory, filters, vocab_size) else None


def shaped_return(
    trajectory: Trajectory, length_reward: LengthRewardConfig | None, *, step: int
) -> float:
    """The return, or of a right answer what its length leaves of it after ``step`` steps."""
    if length_reward is None or not trajectory.passed:
        return trajectory.total_reward
    grown = min(1.0, step / length_reward.growth_steps)
    first, last = length_reward.first_soft_tokens, length_reward.last_soft_tokens
    soft, hard = first + grown * (last - first), length_reward.hard_tokens
    length = trajectory.num_action_tokens
    if length <= soft:
        return 1.0
    return max(-1.0, 1 - 2 * (length - soft) / (hard - soft)) if soft < hard else -1.0


class Curriculum:
    """Solve rates of tasks, and who is asked."""

    def __init__(self, config: CurriculumConfig | None, seed: int):
        self._config: CurriculumConfig | None = config
        self._seed = seed
        self._outcomes: dict[str, collections.deque[bool]] = {}

    def note(self, trajectory: Trajectory) -> None:
        """Takes an outcome in; failures of environments are none."""
        if self._config is None or trajectory.is_void:
            return
        key = _key(trajectory.environment, trajectory.task.name)
        kept = self._outcomes.setdefault(
            key, collections.deque(maxlen=self._config.memory_episodes)
        )
        kept.append(trajectory.passed)

    def solve_rate(self, environment: str, task: str) -> float | None:
        """None before ``min_episodes``."""
        outcomes = self._outcomes.get(_key(environment, task), ())
        if self._config is None or len(outcomes) < self._config.min_episodes:
            return None
        return sum(outcomes) / len(outcomes)

    def asks(self, environment: str, task: str, number: int) -> bool:
        """Whether the draw of that number is asked; it depends on the seed and the rates alone."""
        rate = self.solve_rate(environment, task)
        if self._config is None or rate is None:
            return True
        draw = random.Random(f"{self._seed}/curriculum/{number}").random()
        if not self._config.min_solve_rate <= rate <= self._config.max_solve_rate:
            return draw < self._config.retry_fraction
        tenths = math.floor(rate * 10 + 1e-9) / 10
        return not self._config.harder_first or draw < 1 - tenths

    def state(self) -> dict[str, Any]:
        return {key: [int(o) for o in outcomes] for key, outcomes in self._outcomes.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        length = self._config.memory_episodes if self._config else None
        self._outcomes = {
            key: collections.deque(map(bool, outcomes), maxlen=length)
            for key, outcomes in state.items()
        }


def _is_gibberish(trajectory: Trajectory, filters: FilterConfig, vocab_size: int) -> bool:
    if filters.gibberish_min_token_id is None:
        return False
    least = -math.log(vocab_size) - filters.gibberish_margin
    return any(
        token > filters.gibberish_min_token_id and logprob < least
        for turn in trajectory.turns
        for token, logprob in zip(turn.action, turn.logprobs, strict=True)
    )


def _key(environment: str, task: str) -> str:
    return f"{environment}\n{task}"  # names have no line ends
