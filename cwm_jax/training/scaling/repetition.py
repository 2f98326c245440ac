"""What repeated tokens are worth, and how often a source of few tokens may be read.

Source: Muennighoff et al., "Scaling Data-Constrained Language Models": after the first epoch over U
    unique tokens each further one adds less, and R of them are worth U R* (1 - exp(-R / R*)). The
    target epochs of 1 to 4 a source, and shares of epochs x unique / total: report, section 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cwm_jax.config import schema
from cwm_jax.training.scaling.regression import Interval, interval, resampled_counts

MAX_EPOCHS = 4  # report: target epochs of 1 to 4
_GRID = np.geomspace(1e-2, 1e3, 1001)  # of R*: 1.2 % a step
_HUBER = 1e-2  # of log loss
_ROUNDING = 1e-9


class RepeatedRun(NamedTuple):
    """A run on a source that it read ``tokens / unique_tokens`` times."""

    unique_tokens: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionFit:
    """How fast repeated tokens lose their worth.

    Attributes:
        half_life: R*, the epochs beyond the first after which one is worth 1 / e of a fresh one.
        half_life_interval: 95 % of the bootstrap.
        num_points: runs with repeated tokens.
        at_bound: R* is at the end of what is searched, so that these runs do not tell it: they
            repeat too little, or repetition made no difference.
    """

    half_life: float
    half_life_interval: Interval
    num_points: int
    at_bound: bool

    def to_json(self) -> dict[str, Any]:
        return schema.to_json(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceEpochs:
    """What a source gets of a run."""

    epochs: int
    share: float
    """Of the run's tokens: epochs x unique tokens / total."""
    worth_of_last: float
    """Of a token in the last epoch, on average, in fresh ones."""


def effective_tokens(unique: float, epochs: float, half_life: float) -> float:
    """Fresh tokens that ``epochs`` over ``unique`` tokens are worth: U + U R* (1 - exp(-R / R*)).

    Args:
        unique: U.
        epochs: 1 + R; below 1 a part of the source is read once.
        half_life: R*.

    Raises:
        ValueError: negative epochs, or a half-life that is not above 0.
    """
    if epochs < 0 or half_life <= 0:
        raise ValueError(
            f"epochs {epochs}, half_life {half_life}: expected 0 epochs or more, and a half-life "
            "above 0"
        )
    if epochs <= 1:
        return unique * epochs
    return unique * (1 - half_life * math.expm1(-(epochs - 1) / half_life))


def fit_repetition(
    points: Iterable[tuple[float, float, float]],
    loss_of_fresh_tokens: Callable[[float], float],
    *,
    num_bootstrap: int = 500,
    seed: int = 0,
) -> RepetitionFit:
    """Fits R* so that effective tokens give the losses of runs that repeat their data.

    Args:
        points: (unique tokens, tokens, loss) of runs of one size, see ``RepeatedRun``; those that
            repeat nothing are passed over.
        loss_of_fresh_tokens: the loss of that size on so many tokens that are all fresh, such as
            ``lambda tokens: loss_law(params, tokens)``.
        num_bootstrap: draws, of runs.
        seed: of the draws.

    Raises:
        ValueError: fewer than three runs repeat their data.
    """
    runs = [RepeatedRun(*point) for point in points]
    repeated = [r for r in runs if r.tokens > r.unique_tokens and math.isfinite(r.loss)]
    if len(repeated) < 3:
        raise ValueError(
            f"{len(repeated)} of {len(runs)} runs read a token twice; expected three or more, at "
            "several numbers of epochs: train on parts of the source for the same tokens"
        )
    costs = _costs(repeated, loss_of_fresh_tokens)
    rng = np.random.default_rng(seed)
    one_group = np.zeros(len(repeated), int)
    draws = [_least(costs @ resampled_counts(one_group, rng)) for _ in range(num_bootstrap)]
    best = _least(costs.sum(axis=1))
    return RepetitionFit(
        half_life=best,
        half_life_interval=interval(draws),
        num_points=len(repeated),
        at_bound=not _GRID[1] < best < _GRID[-2],
    )


def target_epochs(
    unique_tokens: Mapping[str, float],
    *,
    half_life: float | Mapping[str, float],
    total_tokens: float,
    min_worth: float = 0.5,
    max_epochs: int = MAX_EPOCHS,
) -> dict[str, SourceEpochs]:
    """Epochs up to which a repeated token is worth its place, and the shares that follow.

    Args:
        unique_tokens: of each source.
        half_life: R*, of all sources or of each.
        total_tokens: of the run, those of sources that are not named here included.
        min_worth: of a token of the last epoch, in fresh ones; 0.5 is a choice, not the report's.
        max_epochs: however much a token is worth.

    Raises:
        ValueError: the sources ask for more than the run, or a value is out of its range.
    """
    if not 0 < min_worth <= 1 or max_epochs < 1:
        raise ValueError(
            f"min_worth {min_worth}, max_epochs {max_epochs}: expected a share of a fresh token's "
            "worth, above 0 and at most 1, and one epoch or more"
        )
    found = {}
    for name, unique in unique_tokens.items():
        decay = half_life[name] if isinstance(half_life, Mapping) else half_life
        worths = [worth_of_epoch(number, decay) for number in range(1, max_epochs + 1)]
        epochs = sum(worth >= min_worth for worth in worths)
        share = epochs * unique / total_tokens
        found[name] = SourceEpochs(epochs=epochs, share=share, worth_of_last=worths[epochs - 1])
    asked = sum(source.share for source in found.values())
    if asked > 1 + _ROUNDING:
        text = ", ".join(f"{n} {s.epochs} x {unique_tokens[n]:,.0f}" for n, s in found.items())
        raise ValueError(
            f"the sources ask for {asked:.1%} of {total_tokens:,.0f} tokens ({text}); expected "
            "100 % at most: raise min_worth, lower max_epochs, or train on more tokens"
        )
    return found


def worth_of_epoch(number: int, half_life: float) -> float:
    """Of a token in that epoch (1 is the first) on average, in fresh tokens."""
    now, before = (effective_tokens(1.0, n, half_life) for n in (number, number - 1))
    return now - before


def _costs(
    runs: Sequence[RepeatedRun], loss_of_fresh_tokens: Callable[[float], float]
) -> np.ndarray:
    """Huber's loss of each run, [R*, run]."""
    residuals = np.array(
        [
            [
                math.log(
                    r.loss
                    / loss_of_fresh_tokens(
                        effective_tokens(r.unique_tokens, r.tokens / r.unique_tokens, half_life)
                    )
                )
                for r in runs
            ]
            for half_life in _GRID.tolist()
        ]
    )
    size = np.abs(residuals)
    return np.where(size <= _HUBER, residuals**2 / 2, _HUBER * (size - _HUBER / 2))


def _least(costs: np.ndarray) -> float:
    """R* of the least cost; between points of the grid by a parabola."""
    best = int(np.argmin(costs))
    if not 0 < best < len(costs) - 1:
        return float(_GRID[best])
    left, here, right = costs[best - 1 : best + 2]
    curvature = left - 2 * here + right
    shift = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    return float(_GRID[best] * (_GRID[1] / _GRID[0]) ** shift)
