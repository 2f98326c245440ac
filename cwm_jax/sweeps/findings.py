"""What a sweep's runs say: laws, whether they hold where they were not fitted, and the loss's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cwm_jax.config import SweepConfig
from cwm_jax.sweeps.ablation.comparison import PairedT, paired_t
from cwm_jax.sweeps.design import scale_tokens
from cwm_jax.sweeps.records import RunRecord, by_kind
from cwm_jax.training.scaling.fits import LawFit, Run, fit_laws, fit_loss_law
from cwm_jax.training.scaling.flops import num_non_embedding_parameters
from cwm_jax.training.scaling.loss_law import LossLaw
from cwm_jax.training.scaling.repetition import RepetitionFit, fit_repetition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """The law's rate against another, at the scale that the fit has not seen.

    Attributes:
        factor: of the other rate, times the law's.
        learning_rate: the other.
        losses: of the other, by seed; infinite where it diverged.
        law_losses: of the law's, likewise.
        difference: the other's less the law's, above 0 where the law's is better, in pairs of one
            seed of which neither diverged; None where there is no such pair.
    """

    factor: float
    learning_rate: float
    losses: tuple[float, ...]
    law_losses: tuple[float, ...]
    difference: PairedT | None

    @property
    def is_beaten(self) -> bool:
        """Whether the law's rate is better than chance would have it, and never diverged."""
        found = self.difference
        if not all(map(math.isfinite, self.law_losses)):
            return False
        if found is None:
            return True  # the other always diverged
        return found.interval is not None and found.interval.low > 0


def fit(config: SweepConfig, records: Sequence[RunRecord], *, seed: int = 0) -> LawFit:
    """The laws of the search; raises ValueError as ``fit_laws``."""
    return fit_laws(
        runs_of(config, records),
        flops_count=config.flops_count,
        source=f"the sweep {config.base.run_name}, {len(records)} runs",
        seed=seed,
        near_optimum=config.near_optimum,
    )


def fit_loss(config: SweepConfig, records: Sequence[RunRecord]) -> LossLaw:
    """L(N, D) of the best run of each scale; raises ValueError as ``fit_loss_law``."""
    return fit_loss_law(runs_of(config, [*by_kind(records, "search"), *by_kind(records, "loss")]))


def runs_of(config: SweepConfig, records: Sequence[RunRecord]) -> list[Run]:
    """As the fits take them; the tokens are their scale's, before whole steps were cut of them."""
    tokens = {
        (scale.compute_flops, num_non_embedding_parameters(scale.model)): scale_tokens(
            config, scale
        )
        for scale in (*config.scales, *config.loss_scales)
    }
    return [
        Run(
            compute=record.compute_flops,
            learning_rate=record.learning_rate,
            batch_tokens=record.batch_tokens,
            loss=loss_of(record),
            params=record.params,
            tokens=tokens[record.compute_flops, record.params],
            seed=record.seed,
        )
        for record in records
    ]


def confirmed(records: Sequence[RunRecord]) -> list[Factor]:
    """Each other factor against the law's own rate."""
    runs = {(record.factor, record.seed): record for record in records}
    seeds = sorted({record.seed for record in records})
    found = []
    for factor in sorted({r.factor for r in records if r.factor not in (None, 1.0)}):
        theirs = [runs[factor, seed] for seed in seeds]
        losses = tuple(map(loss_of, theirs))
        law_losses = tuple(loss_of(runs[1.0, seed]) for seed in seeds)
        finite = [
            other - ours
            for other, ours in zip(losses, law_losses, strict=True)
            if math.isfinite(other) and math.isfinite(ours)
        ]
        found.append(
            Factor(
                factor=factor,
                learning_rate=theirs[0].learning_rate,
                losses=losses,
                law_losses=law_losses,
                difference=paired_t(finite) if finite else None,
            )
        )
    return found


def fit_repeated(records: Sequence[RunRecord]) -> RepetitionFit | None:
    """What repeated tokens are worth; None without runs that repeat.

    The loss of fresh tokens is taken from the runs on them, between them as a power law.

    Raises:
        ValueError: as ``fit_repetition``.
    """
    repeated = by_kind(records, "repeated")
    if not repeated:
        return None
    once = [r for r in (*repeated, *by_kind(records, "fresh")) if r.unique_tokens is None]
    fresh: dict[int, list[float]] = {}
    for record in once:
        fresh.setdefault(record.tokens, []).append(loss_of(record))
    tokens = np.log(sorted(fresh))
    losses = np.log([np.mean(fresh[count]) for count in sorted(fresh)])
    return fit_repetition(
        [(r.unique_tokens, r.tokens, loss_of(r)) for r in repeated if r.unique_tokens is not None],
        lambda count: math.exp(np.interp(math.log(count), tokens, losses)),
    )


def loss_of(record: RunRecord) -> float:
    """Held-out, in nats per token; infinite where the run diverged."""
    return math.inf if record.heldout_loss is None else record.heldout_loss
