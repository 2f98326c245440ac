"""What samples of problems come to: means, pass@k, majorities, with intervals over problems.

Aggregates have the names of the released evaluations:

    mean          share of right samples, or mean of a score
    @k            pass@k: one of k samples is right, unbiased
    majority@k    the most frequent answer of k samples is right; ties: the one with the shortest
                  sample (in tokens), then by lot
    short{m}@k    of k samples at a time the m that end first are counted, as in majority
    max{m}@k      pass@k where only samples of at most m turns count as right
    best@k        of a score: the highest of k samples

``NAME:aggregate`` is of the score NAME; without, of whether it passed. ``k`` samples are any of
those there are: what is given is the expectation over all choices. Each problem counts the same,
but in ``A/B:mean``, the sum of the score A by that of B, as nats by tokens: there it counts as its
B.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cwm_jax.evals.runs.records import Record

_FORM = re.compile(
    r"(?:(?P<score>.+):)?(?P<kind>mean|best@|majority@|short\d+@|max\d+@|@)(?P<k>\d*)"
)
_MAX_CONVOLUTIONS = 100_000  # assumed: above, subsets are drawn; 0.3 s of a problem
_MAX_SUBSETS = 100_000  # report
_CHUNK = 1 << 22  # numbers held at a time
RESAMPLES = 2000  # assumed: moves the ends of an interval by less than a tenth of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer to a problem, as aggregates see it; tokens are 0 where they are not known."""

    passed: bool
    answer: str | None = None
    num_tokens: int = 0
    num_turns: int = 1
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval; None where no problem has a value.

    Attributes:
        num_problems: that have enough samples.
    """

    mean: float | None
    low: float | None
    high: float | None
    num_problems: int


class MetricError(ValueError):
    """A name that is no aggregate's."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """An aggregate by its parts; made by `parse`."""

    name: str
    score: str | None
    kind: str
    k: int
    m: int = 0

    def of(self, samples: Sequence[Sample]) -> float | None:
        """Of one problem; None: too few samples, or without the score."""
        if len(samples) < max(1, self.k):
            return None
        if self.is_ratio:
            above, below = self._terms(samples)
            return above / below if below else None
        if self.score is not None:
            values = [s.scores[self.score] for s in samples if self.score in s.scores]
            if len(values) < max(1, self.k):
                return None
            return _mean(values) if self.kind == "mean" else best_at_k(values, self.k)
        passed = [sample.passed for sample in samples]
        if self.kind == "mean":
            return _mean(passed)
        if self.kind in ("@", "best@"):
            return pass_at_k(len(passed), sum(passed), self.k)
        if self.kind == "majority@":
            return majority_at_k(samples, self.k)
        if self.kind == "max@":
            right = sum(s.passed and s.num_turns <= self.m for s in samples)
            return pass_at_k(len(passed), right, self.k)
        return short_at_k(samples, self.m, self.k)

    @property
    def is_ratio(self) -> bool:
        """Whether it is of two scores, one by the other."""
        return self.score is not None and "/" in self.score

    def weight(self, samples: Sequence[Sample]) -> float:
        """How much a problem of which there is a value counts."""
        return self._terms(samples)[1] if self.is_ratio else 1.0

    def _terms(self, samples: Sequence[Sample]) -> tuple[float, float]:
        """What is divided by what; zeros without the scores."""
        assert self.score is not None
        above, _, below = self.score.partition("/")
        found = [s.scores for s in samples if above in s.scores and below in s.scores]
        if not found:
            return 0.0, 0.0
        return _mean([s[above] for s in found]), _mean([s[below] for s in found])


def parse(name: str) -> Metric:
    """The aggregate of that name; raises MetricError."""
    found = _FORM.fullmatch(name)
    if found is None or (found["kind"] == "mean") != (found["k"] == ""):
        raise _unknown(name)
    kind, number = found["kind"], re.search(r"\d+", found["kind"])
    k, m = int(found["k"] or 0), int(number[0]) if number else 0
    kind = re.sub(r"\d+", "", kind)
    if found["score"] is not None and kind not in ("mean", "best@"):
        raise _unknown(name)
    if "/" in (found["score"] or "") and kind != "mean":
        raise _unknown(name)
    if kind != "mean" and (k < 1 or (kind == "short@" and not 1 <= m <= k)):
        raise _unknown(name)
    return Metric(name, found["score"], kind, k, m)


def samples_needed(names: Iterable[str]) -> int:
    """By the largest k of some aggregates; as in the released code twice that, from 2 on."""
    most = max((parse(name).k for name in names), default=1)
    return 2 * most if most > 1 else 1


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The probability that k of the samples, drawn without putting back, have a right one.

    Source: the closed form of the HumanEval paper, 1 - C(n - c, k) / C(n, k), as a product.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; expected 1 to {num_samples}, the number of samples")
    wrong = num_samples - num_right
    return 1.0 - math.prod((wrong - i) / (num_samples - i) for i in range(k)) if wrong >= k else 1.0


def best_at_k(values: Sequence[float], k: int) -> float:
    """The expected maximum of k of the values."""
    ordered = sorted(values)
    total = math.comb(len(values), k)
    return sum(v * (math.comb(i, k - 1) / total) for i, v in enumerate(ordered))


def majority_at_k(samples: Sequence[Sample], k: int) -> float:
    """The expected verdict of the most frequent answer of k samples.

    Samples without an answer do not vote; where none votes the verdict is wrong. The answer's
    verdict is that of its shortest sample. Exact, or over 100,000 random choices where exactness
    would take long.
    """
    groups, passed = _ranked(samples)
    if len(samples) * k * max(1, len(groups)) > _MAX_CONVOLUTIONS:
        return _drawn(samples, k, k)
    num_silent = len(samples) - sum(map(len, groups))
    total = math.comb(len(samples), k)
    ways = 0.0
    for own, members in enumerate(groups):
        others = [group for number, group in enumerate(groups) if number != own]
        for place, first in enumerate(members):
            if not passed[first]:
                continue
            later = len(members) - place - 1
            for count in range(1, min(later + 1, k) + 1):
                rest = _ways_of_others(others, first, count, num_silent, k - count)
                ways += math.comb(later, count - 1) * rest
    return ways / total


def short_at_k(samples: Sequence[Sample], m: int, k: int) -> float:
    """The expected verdict of the majority of the m shortest of k samples.

    With m = 1 it is that of the shortest alone, whether or not it has an answer.
    """
    order = _order(samples)
    total = math.comb(len(samples), k)
    if math.comb(len(samples), m) > _MAX_SUBSETS:
        return _drawn(samples, m, k)
    value = 0.0
    for places in itertools.combinations(range(len(samples)), m):
        weight = math.comb(len(samples) - 1 - places[-1], k - m)
        if weight:
            chosen = [samples[order[place]] for place in places]
            right = chosen[0].passed if m == 1 else _vote(chosen)
            value += weight * right
    return value / total


def samples_of(records: Iterable[Record]) -> dict[str, list[Sample]]:
    """By problem, in the order in which problems come; void ones are no samples."""
    found: dict[str, list[tuple[int, Sample]]] = {}
    for record in records:
        if record.is_void:
            continue
        sample = Sample(
            passed=record.passed,
            answer=record.answer,
            num_tokens=record.num_tokens or 0,
            num_turns=len(record.turns),
            scores=record.scores,
        )
        found.setdefault(record.problem, []).append((record.sample, sample))
    return {
        name: [sample for _, sample in sorted(pairs, key=lambda pair: pair[0])]
        for name, pairs in found.items()
    }


def estimate(
    metric: Metric, problems: Mapping[str, Sequence[Sample]], *, seed: int = 0
) -> Estimate:
    """The mean over problems, and where it would lie for other problems of the kind."""
    values = values_of(metric, problems)
    return interval([*values.values()], weights=weights_of(metric, problems, values), seed=seed)


def values_of(metric: Metric, problems: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """Of each problem that has enough samples."""
    values = ((name, metric.of(samples)) for name, samples in problems.items())
    return {name: value for name, value in values if value is not None}


def weights_of(
    metric: Metric, problems: Mapping[str, Sequence[Sample]], names: Iterable[str]
) -> list[float] | None:
    """How much each of some problems counts; None: each the same."""
    return [metric.weight(problems[name]) for name in names] if metric.is_ratio else None


def interval(
    values: Sequence[float], *, weights: Sequence[float] | None = None, seed: int = 0
) -> Estimate:
    """The mean of values and its percentile bootstrap interval; seeded, so that it is the same.

    With weights it is the weighted mean; they are drawn with their values.
    """
    return _resampled(_mean_of(values, weights), len(values), seed)


def difference(
    metric: Metric,
    before: Mapping[str, Sequence[Sample]],
    after: Mapping[str, Sequence[Sample]],
    *,
    seed: int = 0,
) -> Estimate:
    """How much higher the second run is on the problems of both, paired by problem."""
    old, new = values_of(metric, before), values_of(metric, after)
    names = [name for name in old if name in new]
    if not metric.is_ratio:
        return interval([new[name] - old[name] for name in names], seed=seed)
    first, second = (
        _mean_of([values[name] for name in names], weights_of(metric, problems, names))
        for values, problems in ((old, before), (new, after))
    )
    return _resampled(lambda chosen: second(chosen) - first(chosen), len(names), seed)


def _mean_of(
    values: Sequence[float], weights: Sequence[float] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Of the values at some places, along the last axis of these."""
    data = np.asarray(values, np.float64)
    if weights is None:
        return lambda chosen: data[chosen].mean(axis=-1)
    counts = np.asarray(weights, np.float64)
    sums = data * counts
    return lambda chosen: sums[chosen].sum(axis=-1) / counts[chosen].sum(axis=-1)


def _resampled(
    statistic: Callable[[np.ndarray], np.ndarray], num_problems: int, seed: int
) -> Estimate:
    """What a function of the places of problems comes to, and to what of those drawn anew."""
    if not num_problems:
        return Estimate(mean=None, low=None, high=None, num_problems=0)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_problems)
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    drawn = [statistic(rng.integers(0, num_problems, (size, num_problems))) for size in sizes]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    mean = statistic(np.arange(num_problems))
    return Estimate(mean=float(mean), low=float(low), high=float(high), num_problems=num_problems)


# ---------------------------------------------------------------- votes


def _order(samples: Sequence[Sample]) -> list[int]:
    """Samples by length; those of one length by a lot that is the same each time."""
    lot = np.random.default_rng(_seed(samples)).permutation(len(samples))
    return sorted(range(len(samples)), key=lambda i: (samples[i].num_tokens, lot[i]))


def _seed(samples: Sequence[Sample]) -> int:
    return zlib.crc32(repr([(s.answer, s.num_tokens) for s in samples]).encode())


def _ranked(samples: Sequence[Sample]) -> tuple[list[list[int]], list[bool]]:
    """The ranks by length of the samples of each answer, rising; and who is right, by rank."""
    groups: dict[str, list[int]] = collections.defaultdict(list)
    ordered = [samples[i] for i in _order(samples)]
    for rank, sample in enumerate(ordered):
        if sample.answer is not None:
            groups[sample.answer].append(rank)
    return [*groups.values()], [sample.passed for sample in ordered]


def _ways_of_others(
    others: Sequence[Sequence[int]], first: int, count: int, num_silent: int, num_left: int
) -> float:
    """In how many ways the rest of a choice leaves the answer with ``count`` votes in front.

    Another answer may have as many votes only if its shortest sample is longer than ``first``.
    """
    ways = np.array([math.comb(num_silent, j) for j in range(num_left + 1)], np.float64)
    for group in others:
        most = min(count, len(group), num_left)
        own = [math.comb(len(group), j) for j in range(min(most, count - 1) + 1)]
        if most == count:
            own.append(math.comb(sum(rank > first for rank in group), count))
        ways = np.convolve(ways, np.array(own, np.float64))[: num_left + 1]
    return float(ways[num_left])


def _vote(ordered: Sequence[Sample]) -> bool:
    """The verdict of the most frequent answer; samples are in the order of their length."""
    counts = collections.Counter(s.answer for s in ordered if s.answer is not None)
    if not counts:
        return False
    most = max(counts.values())
    return next(s.passed for s in ordered if s.answer is not None and counts[s.answer] == most)


def _drawn(samples: Sequence[Sample], m: int, k: int) -> float:
    """Over random choices: of each, the majority of its m shortest."""
    order = _order(samples)
    ordered = [samples[i] for i in order]
    names: dict[str, int] = {}
    codes = np.array(
        [-1 if s.answer is None else names.setdefault(s.answer, len(names)) for s in ordered]
    )
    passed = np.array([s.passed for s in ordered])
    rng = np.random.default_rng(_seed(samples))
    rows = max(1, _CHUNK // (len(samples) * max(1, len(names))))
    sizes = [min(rows, _MAX_SUBSETS - start) for start in range(0, _MAX_SUBSETS, rows)]
    right = [_votes(codes, passed, _choices(rng, size, len(samples), k)[:, :m]) for size in sizes]
    return sum(map(int, right)) / _MAX_SUBSETS


def _choices(rng: np.random.Generator, size: int, num_samples: int, k: int) -> np.ndarray:
    """Ranks of k samples a row, rising."""
    keys = rng.random((size, num_samples))
    return np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)


def _votes(codes: np.ndarray, passed: np.ndarray, chosen: np.ndarray) -> int:
    """In how many rows the most frequent answer, of equals the one that comes first, is right."""
    given = codes[chosen]
    counts = np.zeros((len(chosen), max(1, codes.max() + 1)), np.int64)
    row, column = np.nonzero(given >= 0)
    np.add.at(counts, (row, given[row, column]), 1)
    own = np.where(given >= 0, np.take_along_axis(counts, np.maximum(given, 0), axis=1), 0)
    winner = own.argmax(axis=1)  # the first of the highest
    rows = np.arange(len(chosen))
    return int((passed[chosen[rows, winner]] & (own[rows, winner] > 0)).sum())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _unknown(name: str) -> MetricError:
    return MetricError(
        f"metric {name!r}: expected mean, @K, majority@K, shortM@K (M at most K), maxM@K, of a "
        "score NAME:mean, NAME:best@K, or of two A/B:mean, with K from 1 on"
    )
