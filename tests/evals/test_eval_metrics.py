"""Aggregates against enumeration of every choice, and intervals against what they promise."""

import itertools
import math

import numpy as np
import pytest

from cwm_jax.evals.runs import metrics
from cwm_jax.evals.runs.metrics import (
    MetricError,
    Sample,
    best_at_k,
    difference,
    estimate,
    interval,
    majority_at_k,
    parse,
    pass_at_k,
    samples_needed,
    short_at_k,
)


def drawn_samples(rng, count: int) -> list[Sample]:
    """Answers of which some are equal, some are none; tokens all different."""
    right = {name: bool(rng.random() < 0.5) for name in "abcd"}
    lengths = rng.permutation(100)[:count]
    answers = rng.choice([None, *"abcd"], size=count)
    return [
        Sample(passed=a is not None and right[a], answer=a, num_tokens=int(n))
        for a, n in zip(answers, lengths, strict=True)
    ]


def slow_vote(chosen) -> float:
    """As in words: most votes, then the shortest sample."""
    votes: dict[str, list[Sample]] = {}
    for sample in chosen:
        if sample.answer is not None:
            votes.setdefault(sample.answer, []).append(sample)
    if not votes:
        return 0.0
    ranked = [(-len(v), min(s.num_tokens for s in v), v[0].passed) for v in votes.values()]
    return float(min(ranked)[2])


def over_choices(samples, k: int, value) -> float:
    chosen = list(itertools.combinations(samples, k))
    return sum(map(value, chosen)) / len(chosen)


def test_pass_at_k_is_the_closed_form_and_the_share_of_choices_with_a_right_one():
    for n in range(1, 9):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            closed = 1 - math.comb(n - right, k) / math.comb(n, k)
            counted = over_choices([i < right for i in range(n)], k, any)
            assert pass_at_k(n, right, k) == pytest.approx(closed, abs=1e-12)
            assert counted == pytest.approx(closed, abs=1e-12)
    assert pass_at_k(10**6, 3, 1000) == pytest.approx(1 - (1 - 1000 / 10**6) ** 3, rel=1e-5)
    with pytest.raises(ValueError, match="k is 4; expected 1 to 3"):
        pass_at_k(3, 1, 4)


def test_best_at_k_is_the_mean_of_maxima():
    values = [0.5, -1.0, 3.0, 3.0, 0.25, 2.0]
    for k in range(1, 7):
        assert best_at_k(values, k) == pytest.approx(over_choices(values, k, max))
    assert best_at_k([1, 0, 0, 1], 2) == pytest.approx(pass_at_k(4, 2, 2))


def test_majorities_are_those_of_every_choice():
    rng = np.random.default_rng(0)
    for _ in range(40):
        samples = drawn_samples(rng, int(rng.integers(1, 9)))
        for k in range(1, len(samples) + 1):
            expected = over_choices(samples, k, slow_vote)
            assert majority_at_k(samples, k) == pytest.approx(expected, abs=1e-12)


def test_the_shortest_of_every_choice_vote():
    rng = np.random.default_rng(1)
    for _ in range(20):
        samples = drawn_samples(rng, int(rng.integers(2, 8)))
        for k in range(1, len(samples) + 1):
            for m in range(1, k + 1):

                def value(chosen, m=m):
                    shortest = sorted(chosen, key=lambda s: s.num_tokens)[:m]
                    return shortest[0].passed if m == 1 else slow_vote(shortest)

                expected = over_choices(samples, k, value)
                assert short_at_k(samples, m, k) == pytest.approx(expected, abs=1e-12)


def test_drawn_choices_come_near_the_exact_majority(monkeypatch):
    samples = drawn_samples(np.random.default_rng(2), 20)
    exact = majority_at_k(samples, 10), short_at_k(samples, 3, 10)
    monkeypatch.setattr(metrics, "_MAX_CONVOLUTIONS", 0)
    assert majority_at_k(samples, 10) == majority_at_k(samples, 10)
    monkeypatch.setattr(metrics.math, "comb", lambda n, k: 10**9)
    drawn = majority_at_k(samples, 10), short_at_k(samples, 3, 10)
    # 100,000 choices: a standard error of 0.0016 at most
    assert drawn == pytest.approx(exact, abs=0.008) and drawn != exact


def test_equally_long_answers_draw_lots_the_same_way_each_time():
    samples = [Sample(passed=a == "a", answer=a) for a in "ab"]
    assert majority_at_k(samples, 2) in (0.0, 1.0)
    assert len({majority_at_k(samples, 2) for _ in range(5)}) == 1
    lots = [
        majority_at_k([Sample(passed=a == "a", answer=a, num_tokens=n) for a in "ab"], 2)
        for n in range(64)
    ]
    assert 16 <= sum(lots) <= 48


def test_metrics_by_name_take_what_they_say():
    samples = [
        Sample(passed=True, answer="1", num_tokens=9, num_turns=3, scores={"near": 0.5}),
        Sample(passed=False, answer="2", num_tokens=3, num_turns=1, scores={"near": 0.25}),
    ]
    expected = {
        "mean": 0.5,
        "@1": 0.5,
        "@2": 1.0,
        "max2@2": 0.0,
        "max3@2": 1.0,
        "majority@2": 0.0,
        "short1@2": 0.0,
        "near:mean": 0.375,
        "near:best@2": 0.5,
        "@3": None,
        "far:mean": None,
    }
    assert {name: parse(name).of(samples) for name in expected} == expected
    assert samples_needed(["mean", "@1"]) == 1
    assert samples_needed(["@5", "majority@10"]) == 20


@pytest.mark.parametrize(
    "name", ["mode", "mean3", "@", "@0", "pass@2x", "short3@2", "short@2", "near:@2", "majority@"]
)
def test_what_is_no_metric_is_refused(name):
    with pytest.raises(MetricError, match="expected mean, @K"):
        parse(name)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered = 0
    for number in range(200):
        found = interval((rng.random(80) < 0.3).tolist(), seed=number)
        covered += found.low <= 0.3 <= found.high
    assert 182 <= covered <= 198  # 95 % of 200 are 190, with a standard deviation of 3.1


def test_intervals_are_the_same_each_time_and_shrink_with_the_problems():
    values = np.random.default_rng(5).random(40).tolist()
    assert interval(values) == interval(values) != interval(values, seed=1)
    wide, narrow = interval(values), interval(values * 16)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.15)
    assert interval([]).mean is None


def test_pairs_find_a_difference_that_two_intervals_hide():
    rng = np.random.default_rng(4)
    before = {f"p{i}": [Sample(passed=bool(v))] for i, v in enumerate(rng.random(200) < 0.5)}
    after = dict(before)
    for name in [n for n, samples in before.items() if not samples[0].passed][:10]:
        after[name] = [Sample(passed=True)]
    mean = parse("mean")
    found = difference(mean, before, {**after, "another": [Sample(passed=True)]})
    assert found.mean == pytest.approx(0.05) and found.low > 0 and found.num_problems == 200
    apart = metrics.estimate(mean, before), metrics.estimate(mean, after)
    assert apart[0].high > apart[1].low


def of_nats(*pairs) -> dict[str, list[Sample]]:
    return {
        f"p{n}": [Sample(passed=False, scores={"nats": float(a), "tokens": float(b)})]
        for n, (a, b) in enumerate(pairs)
    }


def test_of_a_ratio_each_problem_counts_as_what_it_is_divided_by():
    ratio = parse("nats/tokens:mean")
    problems = of_nats((3, 1), (10, 100), (4, 2))
    problems["without"] = [Sample(passed=True, scores={"nats": 1.0})]
    found = estimate(ratio, problems)
    assert found.mean == pytest.approx(17 / 103) and found.num_problems == 3
    means = estimate(parse("nats:mean"), problems), estimate(parse("tokens:mean"), problems)
    assert means[1].mean == pytest.approx(103 / 3) and means[0].num_problems == 4
    with pytest.raises(MetricError, match="or of two A/B:mean"):
        parse("nats/tokens:best@2")


def test_intervals_of_a_ratio_are_those_of_the_drawn_sums():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, 40)
    nats = tokens * rng.gamma(2.0, 1.0, 40)
    found = estimate(parse("nats/tokens:mean"), of_nats(*zip(nats, tokens, strict=True)))
    drawn = np.random.default_rng(0).integers(0, 40, (metrics.RESAMPLES, 40))
    ratios = [nats[places].sum() / tokens[places].sum() for places in drawn]
    low, high = np.quantile(ratios, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low < found.mean < found.high


def test_a_difference_of_ratios_is_paired():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 50, 60)
    nats = tokens * rng.gamma(2.0, 1.0, 60)
    before = of_nats(*zip(nats, tokens, strict=True))
    after = of_nats(*zip(nats - 0.1 * tokens, tokens, strict=True), (9, 1))
    found = difference(parse("nats/tokens:mean"), before, after)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert found.num_problems == 60
    halved = of_nats(*zip(nats, 2 * tokens, strict=True))  # of another tokenizer
    found = difference(parse("nats/tokens:mean"), before, halved)
    assert found.mean == pytest.approx(-nats.sum() / tokens.sum() / 2)
    assert found.low < found.mean < found.high
