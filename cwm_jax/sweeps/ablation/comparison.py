"""Paired comparisons over seeds, and over seeds and items; pure functions of numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cwm_jax.sweeps.ablation.measures import Reading

CONFIDENCE = 0.95
LEAST_SEEDS = 3  # assumed: with two, one degree of freedom, an interval is 12.7 standard errors
DRAWS = 10_000
_DRAWS_AT_ONCE = 1000  # of the bootstrap: bounds its memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedT:
    """Of differences, one for each seed.

    Attributes:
        mean: of the differences.
        interval: of their mean; None for one seed, and where all are equal: no spread to take it
            from.
        p: that a mean so far from 0 comes by chance, two-sided; None where ``interval`` is.
    """

    mean: float
    interval: Interval | None
    p: float | None


def paired_t(differences: Sequence[float]) -> PairedT:
    """Student's t of paired differences: they are taken for normal, with a spread that is unknown.

    Raises:
        ValueError: there is no difference.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    n = len(values)
    if not n:
        raise ValueError("no difference: expected one or more seeds that both arms have finished")
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    # Equal but for rounding: what is left of it is no spread.
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return PairedT(mean=mean, interval=None, p=None)
    error = spread / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return PairedT(mean=mean, interval=Interval(low=mean - half, high=mean + half), p=p)


def bootstrap_interval(
    differences: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Percentiles of the mean difference when seeds and items are drawn anew, each with all others.

    All seeds answer the same items, so an item that is drawn is drawn for every seed. A few seeds
    drawn from themselves vary less than seeds do, by (n - 1) / n in variance: with three, the
    interval is too narrow as far as seeds go.

    Args:
        differences: ``[seeds, items]``.
        draws: how often.
        seed: of the draws.

    Returns:
        None where there is nothing to draw from: fewer than two items, or all differences equal.
    """
    D = np.asarray(differences, np.float64)
    S, I = D.shape  # noqa: E741
    if I < 2 or D.max() == D.min():
        return None
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        n = min(_DRAWS_AT_ONCE, draws - start)
        seeds = rng.multinomial(S, np.full(S, 1 / S), size=n) / S
        items = rng.multinomial(I, np.full(I, 1 / I), size=n) / I
        means.append(((seeds @ D) * items).sum(1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that, of all of them, one below a level is by chance no more often than that.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm less the baseline, seed by seed.

    Attributes:
        measure, arm: their names.
        seeds: that both have.
        differences: of each of them.
        over_seeds: Student's t of the differences.
        num_items: that all these runs have; 0 where they do not name them.
        over_items: the bootstrap over seeds and items.
        adjusted_p: `holm` of the p over all comparisons of the ablation.
    """

    measure: str
    arm: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    over_seeds: PairedT
    num_items: int = 0
    over_items: Interval | None = None
    adjusted_p: float | None = None

    @property
    def verdict(self) -> str:
        """``differs`` where chance alone is a bad explanation; never from fewer than 3 seeds."""
        if len(self.seeds) < LEAST_SEEDS:
            return "too few seeds"
        if self.over_seeds.interval is None:
            return "no spread"
        assert self.adjusted_p is not None
        return "differs" if self.adjusted_p < 1 - CONFIDENCE else "not shown"


Readings = Mapping[str, Mapping[str, Mapping[int, Reading]]]
"""By measure, arm and seed."""


def compare(readings: Readings, baseline: str) -> list[Comparison]:
    """Each arm with the baseline, by each measure that both have at a common seed."""
    found = [
        _comparison(measure, arm, of_arm, arms[baseline])
        for measure, arms in readings.items()
        for arm, of_arm in arms.items()
        if arm != baseline and set(of_arm) & set(arms.get(baseline, ()))
    ]
    tested = [(number, c.over_seeds.p) for number, c in enumerate(found)]
    tested = [(number, p) for number, p in tested if p is not None]
    adjusted = holm([p for _, p in tested])
    for (number, _), p in zip(tested, adjusted, strict=True):
        found[number] = dataclasses.replace(found[number], adjusted_p=p)
    return found


def _comparison(
    measure: str, arm: str, ours: Mapping[int, Reading], theirs: Mapping[int, Reading]
) -> Comparison:
    seeds = tuple(sorted(set(ours) & set(theirs)))
    differences = tuple(ours[seed].value - theirs[seed].value for seed in seeds)
    by_item = _item_differences([(ours[seed], theirs[seed]) for seed in seeds])
    return Comparison(
        measure=measure,
        arm=arm,
        seeds=seeds,
        differences=differences,
        over_seeds=paired_t(differences),
        num_items=by_item.shape[1],
        over_items=bootstrap_interval(by_item),
    )


def _item_differences(pairs: Sequence[tuple[Reading, Reading]]) -> np.ndarray:
    """``[seeds, items]``, of the items that all have."""
    readings = [reading for pair in pairs for reading in pair]
    names = set.intersection(*(set(reading.items or ()) for reading in readings))
    rows = [
        [(ours.items or {})[name] - (theirs.items or {})[name] for name in sorted(names)]
        for ours, theirs in pairs
    ]
    return np.asarray(rows, np.float64).reshape(len(pairs), len(names))
