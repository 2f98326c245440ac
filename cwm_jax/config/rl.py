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
