"""Which runs a sweep has: points of a Sobol sequence at each scale, and what follows from the fit.

Everything here is a function of the config, so that the same command finds the same runs again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from scipy.stats import qmc

from cwm_jax.config import RunConfig, SweepConfig, SweepScale
from cwm_jax.training.scaling.flops import law_flops_per_token

MIN_POINTS = 6  # assumed: a quadratic in rate and batch has as many coefficients

Kind = Literal["search", "confirmation", "loss", "repeated", "fresh"]
Law = Callable[[float], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a sweep.

    Attributes:
        name: its own in the sweep.
        kind: ``search`` for the fit; ``confirmation`` of it; ``loss`` for the loss law;
            ``repeated`` tokens, and as many ``fresh`` ones as those are different.
        scale: compute and model.
        learning_rate: peak.
        batch_tokens: of a step.
        steps: number of steps.
        seed: of initial values and of the order of the data.
        unique_tokens: that it trains on, again and again; None: all are fresh.
        factor: of a confirmation, times the law's rate.
    """

    name: str
    kind: Kind
    scale: SweepScale
    learning_rate: float
    batch_tokens: int
    steps: int
    seed: int
    unique_tokens: int | None = None
    factor: float | None = None

    @property
    def tokens(self) -> int:
        """That it trains on, repetitions counted."""
        return self.steps * self.batch_tokens


def micro_batch_rows(config: SweepConfig) -> int:
    """Rows of a micro-batch: those of one device.

    Raises:
        ValueError: not a whole number.
    """
    rows = config.base.batch.per_device_batch_size
    if rows != int(rows):
        raise ValueError(
            f"base.batch.per_device_batch_size is {rows}; expected whole rows: a sweep's run is on "
            "one device"
        )
    return int(rows)


def scale_tokens(config: SweepConfig, scale: SweepScale) -> float:
    """Tokens D on which a scale's compute is spent: C / M."""
    T = config.base.batch.max_target_length
    return scale.compute_flops / law_flops_per_token(scale.model, T, count=config.flops_count)


def num_points(config: SweepConfig, budget_flops: float) -> int:
    """Runs of each scale that a budget for the search pays.

    Raises:
        ValueError: too few to fit anything to.
    """
    one_each = sum(scale.compute_flops for scale in config.scales)
    count = int(budget_flops / one_each)
    if count < MIN_POINTS:
        raise ValueError(
            f"the budget of {budget_flops:.3g} FLOP pays {count} runs at each of "
            f"{len(config.scales)} scales, which take {one_each:.3g} together; expected "
            f"{MIN_POINTS} or more: give {MIN_POINTS * one_each:.3g}, or fewer or smaller scales"
        )
    return count


def search_runs(config: SweepConfig, count: int) -> list[RunSpec]:
    """``count`` runs of each scale, scale by scale; more of them begin with the same ones."""
    found = []
    for number, scale in enumerate(config.scales):
        points = _sobol(count, config.search_seed + number)
        for index, (x, y) in enumerate(points):
            found.append(
                _spec(
                    config,
                    scale,
                    kind="search",
                    name=f"search/{number}/{index}",
                    learning_rate=_between(*config.learning_rates, x),
                    batch_tokens=_between(*_batch_range(config, scale), y),
                    seed=config.seeds[index % len(config.seeds)],
                )
            )
    return found


def confirmation_runs(config: SweepConfig, rate: Law, batch: Law) -> list[RunSpec]:
    """The laws' run at the scale that was left out, and others with its rate times a factor."""
    wanted = config.confirmation
    if wanted is None:
        return []
    C = wanted.scale.compute_flops
    return [
        _spec(
            config,
            wanted.scale,
            kind="confirmation",
            name=f"confirmation/{seed}/{factor:g}",
            learning_rate=factor * rate(C),
            batch_tokens=batch(C),
            seed=seed,
            factor=factor,
        )
        for seed in wanted.seeds
        for factor in wanted.factors
    ]


def loss_runs(config: SweepConfig, rate: Law, batch: Law) -> list[RunSpec]:
    """The laws' run at each scale that is there for the loss law alone."""
    return [
        _spec(
            config,
            scale,
            kind="loss",
            name=f"loss/{number}",
            learning_rate=rate(scale.compute_flops),
            batch_tokens=batch(scale.compute_flops),
            seed=config.seeds[0],
        )
        for number, scale in enumerate(config.loss_scales)
    ]


def repetition_runs(config: SweepConfig, rate: Law, batch: Law) -> list[RunSpec]:
    """Runs of one length on ever fewer tokens, and runs on those tokens alone."""
    wanted = config.repetition
    if wanted is None:
        return []
    found = []
    for seed in wanted.seeds:
        for epochs in sorted(wanted.epochs):
            whole = _repetition_run(config, rate, batch, seed, epochs, is_repeated=True)
            found.append(whole)
            if epochs > 1:
                found.append(_repetition_run(config, rate, batch, seed, epochs, is_repeated=False))
    return found


def run_config(config: SweepConfig, spec: RunSpec) -> RunConfig:
    """The run as ``train.py`` would train it; of repeated tokens, with as many fresh ones."""
    base, tokens = config.base, spec.tokens
    return dataclasses.replace(
        base,
        run_name=spec.name.replace("/", "-"),
        model=spec.scale.model,
        seed=spec.seed,
        batch=dataclasses.replace(
            base.batch, global_batch_tokens=spec.batch_tokens, gradient_accumulation_steps=None
        ),
        optimizer=dataclasses.replace(
            base.optimizer,
            learning_rate=spec.learning_rate,
            train_tokens=tokens,
            warmup_tokens=int(config.warmup_fraction * tokens),
            start_tokens=0,
            horizon_tokens=None,
        ),
    )


def groups(specs: list[RunSpec], size: int) -> Iterator[list[RunSpec]]:
    """Runs that can go side by side: of one model, on the same rows in the same order."""
    kept: dict[tuple, list[RunSpec]] = {}
    for spec in specs:
        key = (spec.kind, spec.scale, spec.seed, spec.unique_tokens)
        if spec.kind == "fresh":
            key = (*key, spec.tokens)
        kept.setdefault(key, []).append(spec)
    for members in kept.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _repetition_run(
    config: SweepConfig, rate: Law, batch: Law, seed: int, epochs: int, *, is_repeated: bool
) -> RunSpec:
    assert config.repetition is not None
    scale, C = config.repetition.scale, config.repetition.scale.compute_flops
    kind: Kind = "repeated" if is_repeated else "fresh"
    spent = scale if is_repeated else dataclasses.replace(scale, compute_flops=C / epochs)
    row = config.base.batch.max_target_length
    unique = round(scale_tokens(config, scale) / epochs / row) * row
    return _spec(
        config,
        spent,
        kind=kind,
        name=f"{kind}/{seed}/{epochs}",
        learning_rate=rate(spent.compute_flops),
        batch_tokens=batch(spent.compute_flops),
        seed=seed,
        unique_tokens=unique if is_repeated and epochs > 1 else None,
    )


def _spec(
    config: SweepConfig,
    scale: SweepScale,
    *,
    kind: Kind,
    name: str,
    learning_rate: float,
    batch_tokens: float,
    seed: int,
    unique_tokens: int | None = None,
    factor: float | None = None,
) -> RunSpec:
    """Batch and length rounded to whole micro-batches and steps."""
    micro_tokens = micro_batch_rows(config) * config.base.batch.max_target_length
    tokens = scale_tokens(config, scale)
    most = tokens / config.min_steps / micro_tokens
    if most < 1:
        raise ValueError(
            f"a run of {scale.compute_flops:.3g} FLOP has {tokens:,.0f} tokens, not "
            f"{config.min_steps} steps of a micro-batch of {micro_tokens:,}; expected a larger "
            "compute, a smaller model or fewer rows in a micro-batch"
        )
    batch = micro_tokens * max(1, min(round(batch_tokens / micro_tokens), math.floor(most)))
    return RunSpec(
        name=name,
        kind=kind,
        scale=scale,
        learning_rate=float(learning_rate),
        batch_tokens=batch,
        steps=max(1, round(tokens / batch)),
        seed=seed,
        unique_tokens=unique_tokens,
        factor=factor,
    )


def _batch_range(config: SweepConfig, scale: SweepScale) -> tuple[float, float]:
    low, high = config.batch_tokens
    return low, max(low, min(high, scale_tokens(config, scale) / config.min_steps))


def _between(low: float, high: float, share: float) -> float:
    """Uniform in the logarithm."""
    return low * (high / low) ** share


def _sobol(count: int, seed: int) -> np.ndarray:
    """The first points of a scrambled sequence, [count, 2], the same for any larger count."""
    sequence = qmc.Sobol(d=2, scramble=True, rng=np.random.default_rng(seed))
    return sequence.random_base2(max(1, math.ceil(math.log2(count))))[:count]
