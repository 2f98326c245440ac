"""Laws of learning rate and batch, fitted on the runs of a sweep.

Near its optimum the logarithm of the loss is a floor of its scale of compute plus a quadratic of
one shape for all scales::

    log loss = floor(scale) + u P u',  u = (log rate - log LR(C), log batch - log BS(C))

with LR and BS power laws of C. With a floor for each scale this is linear in all that is unknown
but P's inverse, so that a robust regression finds it without starting values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cwm_jax.config import schema
from cwm_jax.training.scaling.flops import FlopsCount
from cwm_jax.training.scaling.laws import Laws, PowerLaw
from cwm_jax.training.scaling.regression import (
    Interval,
    huber_regression,
    interval,
    resampled_counts,
)

Edge = Literal["lowest rate", "highest rate", "smallest batch", "largest batch"]

NEAR_OPTIMUM = 0.05  # assumed: further out the loss is no quadratic of the logarithms
_SAME_SCALE = 0.05  # assumed: runs are cut to whole steps, so that their compute differs a little
_EDGE_FRACTION = 0.05  # assumed: of the width of the search, in logarithms
_MAX_LOST_DRAWS = 0.25  # assumed: of the bootstrap, before intervals say nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of a sweep was, and what it came to.

    Attributes:
        compute: FLOP, in the count of the law that is to be fitted.
        learning_rate: peak.
        batch_tokens: of an optimizer step.
        loss: held-out, in nats per token; nan or infinite where the run diverged.
        params: N, without embeddings.
        tokens: D, that it was trained on.
        seed: of its weights.
    """

    compute: float
    learning_rate: float
    batch_tokens: float
    loss: float
    params: float
    tokens: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("compute", "learning_rate", "batch_tokens", "params", "tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Run.{name} is {value}; expected a finite number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleOptimum:
    """Where the loss of one scale of compute is least, without a law that ties it to the others.

    Attributes:
        compute_flops: geometric mean of its runs'.
        num_runs: finite ones.
        num_near: of them, near the optimum.
        best_loss: of its runs.
        learning_rate, learning_rate_interval: None where the runs have no minimum in between.
        batch_tokens, batch_interval: None, too, where a scale has one batch.
        at_edge: sides of the search that the optimum lies at, or beyond: search further there.
    """

    compute_flops: float
    num_runs: int
    num_near: int
    best_loss: float
    learning_rate: float | None
    learning_rate_interval: Interval | None
    batch_tokens: float | None
    batch_interval: Interval | None
    at_edge: tuple[Edge, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFit:
    """Laws with what they were fitted on.

    Attributes:
        laws: with intervals and bootstrap draws.
        per_scale: in order of compute.
        dropped: runs that were not used, by reason.
        curvature: P, of log loss in log rate and log batch (2 x 2, or 1 x 1 with one batch).
        num_draws: of the bootstrap that have a minimum.
        lost_draws: of the bootstrap that have none.
    """

    laws: Laws
    per_scale: tuple[ScaleOptimum, ...]
    dropped: Mapping[str, int]
    curvature: tuple[tuple[float, ...], ...]
    num_draws: int
    lost_draws: int

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of a and b in LR = a C^b, of c and d in batch = c C^d."""
        found = {}
        pairs = (("ab", self.laws.learning_rate), ("cd", self.laws.batch_tokens))
        for names, law in pairs:
            if law is not None and law.factor_interval and law.exponent_interval:
                found |= {names[0]: law.factor_interval, names[1]: law.exponent_interval}
        return found

    def predict_learning_rate(self, compute_flops: float) -> tuple[float, float, float]:
        """(value, low, high) of the law, the last two of 95 % of the bootstrap."""
        return _predicted(self.laws.learning_rate, compute_flops)

    def predict_batch_tokens(self, compute_flops: float) -> tuple[float, float, float]:
        """As ``predict_learning_rate``.

        Raises:
            ValueError: the sweep had one batch at each scale.
        """
        if self.laws.batch_tokens is None:
            raise ValueError(
                "the sweep had one batch at each scale, so that none was fitted; expected runs "
                "with several: search over batch_tokens too"
            )
        return _predicted(self.laws.batch_tokens, compute_flops)

    def to_json(self) -> dict[str, Any]:
        """What ``save_laws`` keeps beside the laws."""
        return {
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "per_scale": [schema.to_json(scale) for scale in self.per_scale],
            "dropped": dict(self.dropped),
            "curvature": [list(row) for row in self.curvature],
            "num_draws": self.num_draws,
            "lost_draws": self.lost_draws,
        }


def fit_laws(
    runs: Iterable[Run],
    *,
    flops_count: FlopsCount,
    source: str,
    num_bootstrap: int = 500,
    seed: int = 0,
    near_optimum: float = NEAR_OPTIMUM,
) -> LawFit:
    """Fits LR = a C^b and batch = c C^d on all scales of compute together, by Huber's loss.

    Runs whose compute differs by less than 5 % from the next one's are a scale. Of a scale count
    the runs whose loss is at most ``1 + near_optimum`` times its best; they are chosen again in
    each draw of the bootstrap, which draws runs with replacement within each scale. Where each
    scale has one batch, the rate alone is fitted.

    Args:
        runs: of the sweep, those that diverged too.
        flops_count: how their compute was counted.
        source: what the file of the laws says of where they are from.
        num_bootstrap: draws for the 95 % intervals.
        seed: of the draws.
        near_optimum: see above.

    Raises:
        ValueError: fewer than two scales, too few runs near the optimum of one, or no minimum
            between the rates and batches that were tried.
    """
    runs = list(runs)
    finite = [run for run in runs if math.isfinite(run.loss) and run.loss > 0]
    data = _Data.of(finite, near_optimum)
    once = np.ones(len(finite), int)
    near = data.near(once)
    _check_enough(data, near, near_optimum)
    point = data.law(near)
    if point is None:
        raise ValueError(
            f"{near.sum()} runs near the optimum have no minimum between the values tried, "
            f"{data.describe_search()}; expected a valley in the loss: search further out, on "
            "both sides of the best runs, or with more runs of each scale"
        )
    rng = np.random.default_rng(seed)
    draws = [data.near(resampled_counts(data.scale, rng)) for _ in range(num_bootstrap)]
    solved = [found for counts in draws if (found := data.law(counts)) is not None]
    lost = num_bootstrap - len(solved)
    if lost > _MAX_LOST_DRAWS * num_bootstrap:
        raise ValueError(
            f"{lost} of {num_bootstrap} bootstrap draws have no minimum between the values tried, "
            f"{data.describe_search()}; expected at most {_MAX_LOST_DRAWS:.0%}: search further "
            "out, or with more runs of each scale"
        )
    laws = Laws(
        learning_rate=_power_law(data, point, solved, 0),
        batch_tokens=_power_law(data, point, solved, 1) if data.num_axes == 2 else None,
        flops_count=flops_count,
        source=source,
        compute_range=(float(data.compute.min()), float(data.compute.max())),
    )
    beyond = int((near == 0).sum())
    dropped = {
        "loss not finite": len(runs) - len(finite),
        f"more than {near_optimum:.0%} above the best of its scale": beyond,
    }
    return LawFit(
        laws=laws,
        per_scale=_per_scale(data, runs, near, draws),
        dropped={reason: count for reason, count in dropped.items() if count},
        curvature=tuple(tuple(float(x) for x in row) for row in point.curvature),
        num_draws=len(solved),
        lost_draws=lost,
    )


def group_by_scale(computes: Sequence[float]) -> np.ndarray:
    """The scale of each run, 0 for the least compute."""
    logs = np.log(np.asarray(computes, float))
    order = np.argsort(logs)
    steps = np.diff(logs[order]) > _SAME_SCALE
    scales = np.empty(len(logs), int)
    scales[order] = np.concatenate([[0], np.cumsum(steps)])
    return scales


@dataclasses.dataclass(frozen=True)
class _Optimum:
    """The minimum at log C - mean is ``offset + slope * that``, on each axis."""

    offset: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Data:
    """Finite runs as arrays; axis 0 is the rate, axis 1 the batch."""

    scale: np.ndarray
    compute: np.ndarray
    """Of each scale."""
    axes: np.ndarray
    """Logarithms, less their mean; a column for each axis that varies within scales."""
    means: np.ndarray
    log_loss: np.ndarray
    near_optimum: float

    @classmethod
    def of(cls, runs: Sequence[Run], near_optimum: float) -> _Data:
        if not runs:
            raise ValueError(
                "no run has a finite loss; expected a sweep whose lower rates do not diverge: "
                "lower the range of rates"
            )
        scale = group_by_scale([run.compute for run in runs])
        logs = np.log([[run.learning_rate, run.batch_tokens] for run in runs])
        compute = np.log([run.compute for run in runs])
        centers = [np.exp(compute[scale == s].mean()) for s in range(scale.max() + 1)]
        batches = {(s, run.batch_tokens) for s, run in zip(scale.tolist(), runs, strict=True)}
        axes = logs if len(batches) > len(centers) else logs[:, :1]
        means = axes.mean(axis=0)
        losses = np.log([run.loss for run in runs])
        return cls(scale, np.array(centers), axes - means, means, losses, near_optimum)

    @property
    def num_axes(self) -> int:
        return self.axes.shape[1]

    @property
    def num_scales(self) -> int:
        return len(self.compute)

    @property
    def mean_log_compute(self) -> float:
        return float(np.log(self.compute).mean())

    def near(self, counts: np.ndarray) -> np.ndarray:
        """The counts of the runs near their scale's best, 0 for the others."""
        limit = np.full(self.num_scales, np.inf)
        np.minimum.at(limit, self.scale[counts > 0], self.log_loss[counts > 0])
        limit += math.log1p(self.near_optimum)
        return np.where(self.log_loss <= limit[self.scale], counts, 0)

    def law(self, counts: np.ndarray) -> _Optimum | None:
        """Optima on power laws; None where there is no minimum, or too little to tell."""
        logs = np.log(self.compute)[self.scale] - self.mean_log_compute
        linear = [self.axes, self.axes * logs[:, None]]
        found = self._solve(counts, np.hstack(linear))
        if found is None:
            return None
        curvature, rest = found
        offset, slope = (_minimum(curvature, part) for part in rest.reshape(2, -1))
        return _Optimum(offset, slope, curvature)

    def free(self, counts: np.ndarray) -> np.ndarray | None:
        """Optima of each scale, [scales, axes], as logarithms; the curvature is shared."""
        own = np.eye(self.num_scales)[self.scale]
        linear = [own * self.axes[:, a : a + 1] for a in range(self.num_axes)]
        found = self._solve(counts, np.hstack(linear))
        if found is None:
            return None
        curvature, rest = found
        gradients = rest.reshape(self.num_axes, -1).T
        return np.array([_minimum(curvature, g) for g in gradients]) + self.means

    def _solve(
        self, counts: np.ndarray, linear: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Curvature, positive definite, and the coefficients of the linear terms."""
        floors = np.eye(self.num_scales)[self.scale]
        squares = [self.axes**2]
        if self.num_axes == 2:
            squares.append(2 * self.axes[:, :1] * self.axes[:, 1:])
        found = huber_regression(np.hstack([floors, *squares, linear]), self.log_loss, counts)
        if found is None:
            return None
        found = found[self.num_scales :]
        curvature = np.diag(found[: self.num_axes])
        if self.num_axes == 2:
            curvature[0, 1] = curvature[1, 0] = found[2]
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            return None
        return curvature, found[2 * self.num_axes - 1 :]

    def describe_search(self) -> str:
        """The values that were tried."""
        low, high = np.exp([f(self.axes, axis=0) + self.means for f in (np.min, np.max)])
        names = ("rates", "batches")[: self.num_axes]
        ranges = zip(names, low, high, strict=True)
        return ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, a, b in ranges)


def _minimum(curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return -0.5 * np.linalg.solve(curvature, gradient)


def _check_enough(data: _Data, near: np.ndarray, near_optimum: float) -> None:
    if data.num_scales < 2:
        raise ValueError(
            f"all runs have about {data.compute[0]:.3g} FLOP; expected two scales of compute or "
            "more, the further apart the better: sweep another"
        )
    needed = 3 * data.num_axes  # a floor, a position and a curvature
    for number, compute in enumerate(data.compute):
        here = (data.scale == number) & (near > 0)
        distinct = len(np.unique(data.axes[here].round(9), axis=0))
        if distinct < needed:
            raise ValueError(
                f"the scale of {compute:.3g} FLOP has {distinct} different settings with a loss "
                f"within {near_optimum:.0%} of its best; expected {needed} or more: run more "
                "near the best one, raise near_optimum, or leave the scale out"
            )


def _power_law(data: _Data, point: _Optimum, draws: Sequence[_Optimum], axis: int) -> PowerLaw:
    def law(found: _Optimum) -> tuple[float, float]:
        exponent = float(found.slope[axis])
        log_factor = found.offset[axis] + data.means[axis] - exponent * data.mean_log_compute
        return math.exp(log_factor), exponent

    factor, exponent = law(point)
    drawn = [law(found) for found in draws]
    if not drawn:
        return PowerLaw(factor, exponent)
    return PowerLaw(
        factor,
        exponent,
        factor_interval=interval([a for a, _ in drawn]),
        exponent_interval=interval([b for _, b in drawn]),
        draws=tuple(drawn),
    )


def _predicted(law: PowerLaw, compute_flops: float) -> tuple[float, float, float]:
    value = law(compute_flops)
    low, high = law.interval(compute_flops) or (math.nan, math.nan)
    return value, low, high


def _per_scale(
    data: _Data, runs: Sequence[Run], near: np.ndarray, draws: Sequence[np.ndarray]
) -> tuple[ScaleOptimum, ...]:
    point = data.free(near)
    drawn = [found for counts in draws if (found := data.free(counts)) is not None]
    scales = []
    for number, compute in enumerate(data.compute):
        here = data.scale == number
        values: list[float | None] = [None, None]
        spreads: list[Interval | None] = [None, None]
        if point is not None:
            for axis in range(data.num_axes):
                values[axis] = math.exp(point[number, axis])
                if drawn:
                    spreads[axis] = interval(np.exp([d[number, axis] for d in drawn]))
        scales.append(
            ScaleOptimum(
                compute_flops=float(compute),
                num_runs=int(here.sum()),
                num_near=int((near[here] > 0).sum()),
                best_loss=float(np.exp(data.log_loss[here].min())),
                learning_rate=values[0],
                learning_rate_interval=spreads[0],
                batch_tokens=values[1],
                batch_interval=spreads[1],
                at_edge=_edges(data, runs, compute, values),
            )
        )
    return tuple(scales)


def _edges(
    data: _Data, runs: Sequence[Run], compute: float, optimum: Sequence[float | None]
) -> tuple[Edge, ...]:
    """Sides of all that was tried at a scale: a rate that diverged was tried, too."""
    tried = [r for r in runs if abs(math.log(r.compute / compute)) <= 2 * _SAME_SCALE]
    names: tuple[tuple[Edge, Edge], ...] = (
        ("lowest rate", "highest rate"),
        ("smallest batch", "largest batch"),
    )
    found: list[Edge] = []
    for axis, value in enumerate(optimum[: data.num_axes]):
        logs = [math.log(r.batch_tokens if axis else r.learning_rate) for r in tried]
        margin = _EDGE_FRACTION * (max(logs) - min(logs))
        if value is not None and math.log(value) <= min(logs) + margin:
            found.append(names[axis][0])
        if value is not None and math.log(value) >= max(logs) - margin:
            found.append(names[axis][1])
    return tuple(found)
