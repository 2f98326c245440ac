"""Laws fitted on the runs of a sweep: of learning rate and batch, and of the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cwm_jax.config import schema
from cwm_jax.training.scaling.flops import FlopsCount
from cwm_jax.training.scaling.laws import Laws, PowerLaw
from cwm_jax.training.scaling.loss_law import LossLaw, law_from_points
from cwm_jax.training.scaling.regression import Interval, interval, resampled_counts
from cwm_jax.training.scaling.valley import SAME_SCALE, PowerLawOptimum, Valley, group_by_scale

Edge = Literal["lowest rate", "highest rate", "smallest batch", "largest batch"]

NEAR_OPTIMUM = 0.05  # assumed: further out the loss is no quadratic of the logarithms
_EDGE_FRACTION = 0.05  # assumed: of the width of the search, in logarithms
_MIN_POINTS = 7  # for five coefficients
_MIN_SPREAD = 0.2  # assumed: of log D, where log N does not give it
_MAX_LOST_DRAWS = 0.25  # assumed: of the bootstrap, before intervals say nothing
_MAX_LOG_FACTOR = 600.0  # a number of 64 bits ends at 709: a valley so flat has no minimum


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
        params: N of its model.
        num_runs: finite ones.
        num_near: of them, near the optimum.
        best_loss: of its runs.
        learning_rate, learning_rate_interval: None where the runs have no minimum in between.
        batch_tokens, batch_interval: None, too, where a scale has one batch.
        at_edge: sides of the search that the optimum lies at, or beyond: search further there.
    """

    compute_flops: float
    params: float
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
    num_bootstrap: int = 2000,
    seed: int = 0,
    near_optimum: float = NEAR_OPTIMUM,
) -> LawFit:
    """Fits LR = a C^b and batch = c C^d on all scales of compute together, by Huber's loss.

    Runs of one size whose compute differs by less than 5 % from the next one's are a scale. Of it
    count the runs whose loss is at most ``1 + near_optimum`` times its best; they are chosen again
    in each draw of the bootstrap, which draws runs with replacement within each scale. Where each
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
    data = _valley(finite, near_optimum)
    once = np.ones(len(finite), int)
    near = data.near(once)
    _check_enough(data, near, near_optimum)
    point = _law(data, near)
    if point is None:
        raise ValueError(
            f"{near.sum()} runs near the optimum have no minimum between the values tried, "
            f"{data.describe_search()}; expected a valley in the loss: search further out, on "
            "both sides of the best runs, or with more runs of each scale"
        )
    rng = np.random.default_rng(seed)
    draws = [data.near(resampled_counts(data.scale, rng)) for _ in range(num_bootstrap)]
    solved = _drawn_laws(data, draws)
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
        lost_draws=num_bootstrap - len(solved),
    )


def _law(data: Valley, counts: np.ndarray) -> PowerLawOptimum | None:
    found = data.law(counts)
    if found is None or np.abs(_log_factors(data, found)).max() > _MAX_LOG_FACTOR:
        return None
    return found


def _drawn_laws(data: Valley, draws: Sequence[np.ndarray]) -> list[PowerLawOptimum]:
    solved = [law for counts in draws if (law := _law(data, counts)) is not None]
    lost = len(draws) - len(solved)
    if lost > _MAX_LOST_DRAWS * len(draws):
        raise ValueError(
            f"{lost} of {len(draws)} bootstrap draws have no minimum between the values tried, "
            f"{data.describe_search()}; expected at most {_MAX_LOST_DRAWS:.0%}: search further "
            "out, or with more runs of each scale"
        )
    return solved


def _valley(finite: Sequence[Run], near_optimum: float) -> Valley:
    if not finite:
        raise ValueError(
            "no run has a finite loss; expected a sweep whose lower rates do not diverge: lower "
            "the range of rates"
        )
    axes = np.log([[run.learning_rate, run.batch_tokens] for run in finite])
    losses = np.log([run.loss for run in finite])
    compute, params = [run.compute for run in finite], [run.params for run in finite]
    return Valley.of(compute, params, axes, losses, near_optimum)


def _check_enough(data: Valley, near: np.ndarray, near_optimum: float) -> None:
    if data.compute.max() < (1 + SAME_SCALE) * data.compute.min():
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


def _power_law(
    data: Valley, point: PowerLawOptimum, draws: Sequence[PowerLawOptimum], axis: int
) -> PowerLaw:
    def law(found: PowerLawOptimum) -> tuple[float, float]:
        return math.exp(_log_factors(data, found)[axis]), float(found.slope[axis])

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


def _log_factors(data: Valley, law: PowerLawOptimum) -> np.ndarray:
    return law.offset + data.means - law.slope * data.mean_log_compute


def _predicted(law: PowerLaw, compute_flops: float) -> tuple[float, float, float]:
    value = law(compute_flops)
    low, high = law.interval(compute_flops) or (math.nan, math.nan)
    return value, low, high


def _per_scale(
    data: Valley, runs: Sequence[Run], near: np.ndarray, draws: Sequence[np.ndarray]
) -> tuple[ScaleOptimum, ...]:
    point = data.free(near)
    drawn = [found for counts in draws if (found := data.free(counts)) is not None]
    params = np.array([run.params for run in runs if math.isfinite(run.loss) and run.loss > 0])
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
                params=float(params[here][0]),
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
    data: Valley, runs: Sequence[Run], compute: float, optimum: Sequence[float | None]
) -> tuple[Edge, ...]:
    """Sides of all that was tried at a scale: a rate that diverged was tried, too."""
    tried = [r for r in runs if abs(math.log(r.compute / compute)) <= 2 * SAME_SCALE]
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


def fit_loss_law(runs: Iterable[Run], *, num_bootstrap: int = 200, seed: int = 0) -> LossLaw:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta on the best setting of each N and D.

    Of each pair of N and D counts the rate and batch of least loss, on average over seeds; lengths
    within 5 % are one D, and runs that diverged do not count.

    Args:
        runs: of a sweep over sizes and tokens.
        num_bootstrap: draws for the 95 % intervals.
        seed: of the draws.

    Raises:
        ValueError: too few pairs, too few of N or D, or N and D that grow together.
    """
    best = _best_losses(runs)
    params, tokens = np.array(sorted(best)).reshape(-1, 2).T
    _check_grid(params, tokens)
    losses = [best[pair] for pair in sorted(best)]
    return law_from_points(params, tokens, losses, num_bootstrap=num_bootstrap, seed=seed)


def _best_losses(runs: Iterable[Run]) -> dict[tuple[float, float], float]:
    """Of each (N, D); lengths that differ by less than 5 % are one, as are scales of compute."""
    best = {}
    finite = [run for run in runs if math.isfinite(run.loss) and run.loss > 0]
    for params in sorted({run.params for run in finite}):
        of_size = [run for run in finite if run.params == params]
        lengths = group_by_scale([run.tokens for run in of_size])
        for length in range(lengths.max() + 1):
            here = [r for r, n in zip(of_size, lengths.tolist(), strict=True) if n == length]
            tokens = math.exp(np.mean([math.log(run.tokens) for run in here]))
            best[params, tokens] = _best_mean(here)
    return best


def _best_mean(runs: Sequence[Run]) -> float:
    """The least loss of a rate and batch, on average over seeds."""
    settings: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        settings.setdefault((run.learning_rate, run.batch_tokens), []).append(run.loss)
    return min(float(np.mean(losses)) for losses in settings.values())


def _check_grid(params: np.ndarray, tokens: np.ndarray) -> None:
    """Five coefficients, three of them along N (E, A, alpha) and three along D."""
    wanted = (
        f"expected {_MIN_POINTS} pairs or more, of three N and three D at least, such as each of "
        "three sizes trained on each of three numbers of tokens"
    )
    sizes, lengths = len(np.unique(params)), int(group_by_scale(tokens).max(initial=-1)) + 1
    if len(params) < _MIN_POINTS or sizes < 3 or lengths < 3:
        raise ValueError(
            f"{len(params)} pairs of N and D with a finite loss, of {sizes} N and {lengths} D; "
            f"{wanted}"
        )
    N, D = np.log(params), np.log(tokens)
    line = np.polyfit(N, D, 1)
    spread = float(np.std(D - np.polyval(line, N)))
    if spread < _MIN_SPREAD:
        raise ValueError(
            f"D goes with N (as N^{line[0]:.2f}, {spread:.2g} of log D is its own), so that the "
            f"two terms of the law cannot be told apart; expected {_MIN_SPREAD} or more: train "
            f"sizes on more than one number of tokens per parameter; {wanted}"
        )
