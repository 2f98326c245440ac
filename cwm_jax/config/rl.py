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
        max_tasks: to train on, drawn by the run's seed, so that they come again and their solve
            rates are known; None takes all.
        unsafe: run code without bubblewrap.
    """

    name: str
    kind: Literal["output_prediction", "trace_prediction", "code", "math", "math_python", "swe"]
    path: str | None = None
    profile: str = "small"
    weight: float = 1.0
    max_tasks: int | None = None
    unsafe: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "weight", "max_tasks")
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"rl environment name is {self.name!r}; expected letters, digits, '-' and '_' alone"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """The objective; the defaults are the report's. ``cwm_jax.rl.objective`` names the variants.

    Attributes:
        baseline: what is subtracted from a trajectory's return: ``token_mean``, the group's mean
            weighted by action tokens; ``mean``; ``leave_one_out``, the mean of the others.
        divide_by_std: divide the advantages by the group's standard deviation, that of all its
            returns (of n, not n - 1).
        ratio: of probabilities to the sampler's: of each ``token``, or of the whole ``sequence``,
            the exponential of the mean log-ratio of its action tokens.
        surrogate: ``clip`` is PPO's; ``cispo`` takes the clipped ratio as a constant weight, so
            that every token learns.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; from
            clip_low = 1 on there is no lower bound.
        normalization: what the sum over the batch's action tokens is divided by: a ``constant``;
            the number of ``tokens`` in it; or each trajectory's by its own number, then by that of
            trajectories (``sequence``).
        normalization_tokens: the constant, for each row of the batch; None is the rows' length,
            which divides by the batch's room for tokens, however it is cut into rows. The report's
            131,072 is the length of its rows.
        kl_weight: of the estimated divergence from the starting policy, at each action token of
            the batch; 0 keeps no such policy.
        importance_cap: truncated importance weights: the ratio of the trainer's probabilities
            before the step to the sampler's is a weight of at most this, and the clipped ratio is
            to the trainer's own, which is 1 in the one step that a batch is used for, so that
            nothing is clipped; None leaves both in one ratio.
    """

    baseline: Literal["token_mean", "mean", "leave_one_out"] = "token_mean"
    divide_by_std: bool = False
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2  # report
    clip_high: float = 0.25  # report
    normalization: Literal["constant", "tokens", "sequence"] = "constant"
    normalization_tokens: int | None = None  # report, at its rows of 131,072
    kl_weight: float = 0.0  # report: none
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "normalization_tokens", "clip_low", "clip_high", "importance_cap")
        if self.kl_weight < 0:
            raise ValueError(f"rl.loss.kl_weight is {self.kl_weight}; expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Trajectories that are not learnt from.

    Attributes:
        max_staleness_steps: steps since the weights that drew its most recent token, at most.
        gibberish_min_token_id: a trajectory with a token above this id, which is rare text in the
            vocabulary of Llama 3, that the sampler gave less than the least probability, is
            rejected; None rejects none, nor does an id that the vocabulary has not.
        gibberish_margin: the least log-probability is that of a uniform draw, less this, in nats.
        skip_zero_advantage: leave out groups whose returns are all equal and, where nothing else
            depends on them (``normalization="constant"``, no ``kl_weight``), single trajectories
            without advantage; False learns from all of them.
    """

    max_staleness_steps: int = 100  # report
    gibberish_min_token_id: int | None = 100_000  # report, of 128,256 tokens
    gibberish_margin: float = 2.0  # report
    skip_zero_advantage: bool = True  # report

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_staleness_steps", "gibberish_min_token_id", "gibberish_margin"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"rl.filters.{name} is {value}; expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthRewardConfig:
    """What a right answer is worth by its action tokens.

    1 up to a soft limit, from there falling to -1 at the hard one; the soft limit grows.

    Attributes:
        first_soft_tokens, last_soft_tokens: the soft limit before the first step, and after
            ``growth_steps``.
        growth_steps: over which it grows, linearly.
        hard_tokens: where a right answer is worth -1.
    """

    first_soft_tokens: int = 8_192  # report
    last_soft_tokens: int = 65_536  # report
    growth_steps: int = 10_000  # report
    hard_tokens: int = 65_536  # report

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "first_soft_tokens", "growth_steps", "hard_tokens")
        limits = (self.first_soft_tokens, self.last_soft_tokens, self.hard_tokens)
        if sorted(limits) != list(limits):
            raise ValueError(
                f"rl.length_reward has the soft limits {limits[0]} to {limits[1]} and the hard one "
                f"{limits[2]}; expected them in rising order"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Tasks by how often they are solved; one that has not been tried enough is always asked.

    Attributes:
        min_solve_rate, max_solve_rate: others are passed over.
        min_episodes: of a task before its rate counts.
        memory_episodes: of a task, the newest, that its rate is of.
        harder_first: within the limits, a task is asked with the probability 1 - its rate, rounded
            down to tenths (report, stage 3: binned by 0.1, harder ones sampled more).
        retry_fraction: of the tasks that would be passed over, still asked: their rate may move.
    """

    min_solve_rate: float = 0.1  # report
    max_solve_rate: float = 0.7  # report
    min_episodes: int = 8
    memory_episodes: int = 32
    harder_first: bool = False
    retry_fraction: float = 0.05  # assumed

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "min_episodes", "memory_episodes")
        if self.min_episodes > self.memory_episodes:
            raise ValueError(
                f"rl.curriculum.min_episodes is {self.min_episodes}, memory_episodes "
                f"{self.memory_episodes}; expected no more than are remembered: with more, no "
                "task's rate would ever count"
            )
        if not 0 <= self.min_solve_rate <= self.max_solve_rate <= 1:
            raise ValueError(
                f"rl.curriculum: solve rates {self.min_solve_rate} to {self.max_solve_rate}; "
                "expected 0 to 1, the lower first"
            )
        if not 0 < self.retry_fraction <= 1:
            raise ValueError(
                f"rl.curriculum.retry_fraction is {self.retry_fraction}; expected above 0 and at "
                "most 1: with 0, a run whose tasks are all solved would ask for ever"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig:
    """The reinforcement learning of a run; its batches are ``batch``'s rows, by token budget.

    Attributes:
        environments: what is asked, mixed by their weights.
        group_size: episodes of each task, whose returns are compared.
        groups_at_once: groups whose episodes are played side by side, on each engine: one in each
            process of the run, or in each worker.
        max_groups_per_step: after so many the step takes what it has, its batch full or not.
        mode: ``synchronous`` plays and trains in turns, and repeats itself bit for bit;
            ``asynchronous`` plays all the time, with weights that are pushed into running episodes.
        ready_groups: of the asynchronous mode: groups that may wait for the trainer.
        rollout_devices: of each process, that play while the others train; 0 shares the trainer's.
        rollout_workers: processes on a Ray cluster that play; 0 plays in this one.
        rollout_worker_gpus: that each of them asks of the cluster.
        ray_address: of that cluster, as ``ray.init`` takes it; None starts Ray on this machine.
        rollout_dtype: of the weights that play; None is the trainer's.
        max_rows: episodes that an engine computes at once.
        environment_timeout_s: for each step of an environment, without its waits for sandboxes that
            other episodes use; longer ones have failed.
        loss: the objective.
        filters: what is not learnt from.
        length_reward: shapes the rewards of right answers; None leaves them.
        curriculum: chooses tasks by their solve rates; None takes all.
        eval_tasks: held-out tasks of each environment in an evaluation.
        eval_samples: answers to each of them, whose solve rates are averaged.
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
    rollout_worker_gpus: float = 0.0
    ray_address: str | None = None
    rollout_dtype: Literal["float32", "bfloat16"] | None = None
    max_rows: int = 32
    environment_timeout_s: float = 600.0
    loss: PolicyLossConfig = dataclasses.field(default_factory=PolicyLossConfig)
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    length_reward: LengthRewardConfig | None = None
    curriculum: CurriculumConfig | None = None
    eval_tasks: int = 128
    eval_samples: int = 1
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
            "eval_samples",
            "eval_period",
        )
        counts = ("rollout_devices", "rollout_workers", "rollout_worker_gpus", "eval_temperature")
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"rl.{name} is {getattr(self, name)}; expected 0 or more")
        if self.mode == "synchronous" and (self.rollout_devices or self.rollout_workers):
            raise ValueError(
                "rl.mode is 'synchronous' and rollout_devices or rollout_workers is set; what "
                "plays elsewhere plays while the trainer trains: set rl.mode='asynchronous'"
            )
