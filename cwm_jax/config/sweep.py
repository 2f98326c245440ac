"""Many small runs at several computes, from which scaling laws are fitted."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.config.architecture import ModelConfig
from cwm_jax.config.run import RunConfig
from cwm_jax.config.schema import check_positive, check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepScale:
    """A training compute in FLOP, and the size of model that it is spent on."""

    compute_flops: float
    model: ModelConfig

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "compute_flops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmationConfig:
    """A scale that the fit does not see: the law's rate there, beside others.

    Attributes:
        scale: the left out one; its batch is the law's.
        factors: times the law's rate; 1 among them.
        seeds: each with every factor, compared in pairs.
    """

    scale: SweepScale
    factors: tuple[float, ...] = (0.25, 1.0, 4.0)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        check_types(self)
        if 1.0 not in self.factors or len(self.factors) < 2 or min(self.factors) <= 0:
            raise ValueError(
                f"confirmation.factors is {self.factors}; expected 1, the law's own rate, and one "
                "or more others above 0"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"confirmation.seeds is {self.seeds}; expected different ones")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionConfig:
    """What repeated tokens are worth: runs of one length on ever fewer different tokens.

    Attributes:
        scale: of all these runs; rate and batch are the law's.
        epochs: of each run. One more run for each trains on its different tokens alone, once.
        seeds: each with all of them.
    """

    scale: SweepScale
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_types(self)
        if 1 not in self.epochs or len(self.epochs) < 3 or min(self.epochs) < 1:
            raise ValueError(
                f"repetition.epochs is {self.epochs}; expected 1 and two or more others, each 1 "
                "or more"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep; a file's ``get_config()`` returns one.

    A run is trained on ``compute_flops`` / M tokens, M being the law's FLOP per token. Its peak
    learning rate and its batch are drawn from the ranges below by a Sobol sequence, uniformly in
    their logarithms; the budget of the command says how many runs a scale gets.

    Attributes:
        base: the run of which all others are made: data, tokenizer, rows, shape of the schedule.
            Its model and tokens are replaced.
        scales: computes and models.
        learning_rates: lowest and highest peak.
        batch_tokens: lowest and highest, rounded to micro-batches; a single run never has a batch
            that leaves it fewer than ``min_steps`` steps.
        min_steps: see ``batch_tokens``.
        warmup_fraction: of a run's tokens.
        flops_count: how M counts attention, see ``training/scaling``.
        search_seed: of the Sobol sequence's scrambling.
        seeds: of the runs, in turn: initial values and order of the data.
        near_optimum: runs whose loss is within this share of their scale's best count in the fit.
        loss_scales: trained once, at the fitted rate and batch: with the best runs of ``scales``
            they give the loss law, which needs sizes at more than one number of tokens.
        confirmation: runs that test the fit.
        repetition: runs that the repetition law is fitted to.
    """

    base: RunConfig
    scales: tuple[SweepScale, ...]
    learning_rates: tuple[float, float]
    batch_tokens: tuple[int, int]
    min_steps: int = 32  # assumed
    warmup_fraction: float = 0.02  # assumed
    flops_count: Literal["report", "windows"] = "report"
    search_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    near_optimum: float = 0.05  # assumed
    loss_scales: tuple[SweepScale, ...] = ()
    confirmation: ConfirmationConfig | None = None
    repetition: RepetitionConfig | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "min_steps", "near_optimum")
        for name in ("learning_rates", "batch_tokens"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}); expected lowest and highest, above 0")
        if len({scale.compute_flops for scale in self.scales}) < 2:
            raise ValueError(
                f"scales have {len({s.compute_flops for s in self.scales})} different computes; "
                "expected two or more: a law says how the optimum moves with the compute"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; expected 0 to below 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected different ones")
        self._check_models()

    def _check_models(self) -> None:
        others = [part.scale for part in (self.confirmation, self.repetition) if part is not None]
        for scale in (*self.scales, *self.loss_scales, *others):
            if scale.model.vocab_size != self.base.model.vocab_size:
                raise ValueError(
                    f"a scale's model has vocab_size {scale.model.vocab_size} and base.model "
                    f"{self.base.model.vocab_size}; expected one vocabulary: losses of different "
                    "tokens cannot be compared"
                )
