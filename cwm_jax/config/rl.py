"""How a policy learns from rewards: its environments, episodes, objective and batches."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.config.schema import check_positive, check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Tasks of one kind.

    Attributes:
        name: unique among the run's; in logs.
        kind: see ``cwm_jax.rl.envs``.
        path: of its tasks: JSONL, or a trace corpus (``output_prediction``, ``trace_prediction``).
        profile: names the limits, see the module of the kind; ``small`` is for tests.
        weight: share of the prompts, relative to the others'.
        unsafe: run code without bubblewrap.
    """

    name: str
    kind: Literal["output_prediction", "trace_prediction", "code", "math", "math_python", "swe"]
    path: str | None = None
    profile: str = "small"
    weight: float = 1.0
    unsafe: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """The objective; the defaults are the report's (section 5.2 of it).

    Attributes:
        baseline: what is subtracted from a trajectory's return R: ``token_mean``, the group's mean
            weighted by action tokens; ``mean``; ``leave_one_out``, the mean of the others (RLOO).
        divide_by_std: divide the advantages by the group's standard deviation (GRPO).
        ratio: of probabilities to the sampler's: of each ``token``, or of the whole ``sequence`` by
            its mean log-ratio (GSPO).
        surrogate: ``clip`` (PPO) or ``cispo``, which clips the ratio as a constant weight and lets
            every token's log-probability learn.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        normalization: what the sum over action tokens is divided by: ``constant``
            (normalization_tokens of each trajectory-slot, see objective.py), ``tokens`` (their
            number in the batch), ``sequence`` (each trajectory's own number, then trajectories).
        normalization_tokens: the constant.
        kl_weight: of the penalty on the distance to the starting policy; 0 keeps no such policy.
        importance_cap: truncated importance weights between the trainer's own old log-probabilities
            and the sampler's; None uses none.
    """

    baseline: Literal["token_mean", "mean", "leave_one_out"] = "token_mean"
    divide_by_std: bool = False
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2  # report
    clip_high: float = 0.25  # report
    normalization: Literal["constant", "tokens", "sequence"] = "constant"
    normalization_tokens: int = 131_072  # report
    kl_weight: float = 0.0  # report: none
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "normalization_tokens", "clip_low", "clip_high", "importance_cap")
        if self.kl_weight < 0:
            raise ValueError(f"rl.loss.kl_weight is {self.kl_weight}; expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig:
    """The reinforcement learning of a run; its batches are ``batch``'s rows, by token budget.

    Attributes:
        environments: what is asked, mixed by their weights.
        group_size: episodes of each task, whose returns are compared.
        groups_at_once: groups whose episodes are played side by side.
        max_groups_per_step: after so many the step takes what it has, its batch full or not.
        mode: ``synchronous`` plays and trains in turns, and repeats itself bit for bit;
            ``asynchronous`` plays all the time, with weights that are pushed into running episodes.
        ready_groups: of the asynchronous mode: groups that may wait for the trainer.
        rollout_devices: that play while the others train; 0 shares the trainer's.
        rollout_workers: processes on a Ray cluster that play; 0 plays in this one.
        ray_address: of that cluster, as ``ray.init`` takes it; None starts Ray on this machine.
        rollout_dtype: of the weights that play; None is the trainer's.
        max_rows: episodes that the engine computes at once.
        environment_timeout_s: for each step of an environment; longer ones have failed.
        loss: the objective.
        eval_tasks: held-out tasks of each environment in an evaluation, each answered once.
        eval_period: steps between evaluations; the first step and the last are always evaluated.
        eval_temperature: of their draws.
    """

    environments: tuple[EnvironmentConfig, ...]
    group_size: int = 8  # secondary
    groups_at_once: int = 16
    max_groups_per_step: int = 512
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    ready_groups: int = 16
    rollout_devices: int = 0
    rollout_workers: int = 0
    ray_address: str | None = None
    rollout_dtype: Literal["float32", "bfloat16"] | None = None
    max_rows: int = 32
    environment_timeout_s: float = 600.0
    loss: PolicyLossConfig = dataclasses.field(default_factory=PolicyLossConfig)
    eval_tasks: int = 128
    eval_period: int = 50
    eval_temperature: float = 1.0  # report: its evaluations'

    def __post_init__(self) -> None:
        check_types(self)
        names = [environment.name for environment in self.environments]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"rl.environments are named {names}; expected one or more, each with its own name"
            )
        check_positive(
            self,
            "group_size",
            "groups_at_once",
            "max_groups_per_step",
            "ready_groups",
            "max_rows",
            "environment_timeout_s",
            "eval_tasks",
            "eval_period",
        )
        for name in ("rollout_devices", "rollout_workers", "eval_temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"rl.{name} is {getattr(self, name)}; expected 0 or more")
        if self.mode == "synchronous" and (self.rollout_devices or self.rollout_workers):
            raise ValueError(
                "rl.mode is 'synchronous' and rollout_devices or rollout_workers is set; what "
                "plays elsewhere plays while the trainer trains: set rl.mode='asynchronous'"
            )
