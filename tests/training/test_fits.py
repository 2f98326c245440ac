"""Fits: laws that are known are found again, intervals hold them, what tells nothing is refused."""

import dataclasses
import math

import numpy as np
import pytest

from cwm_jax.training.scaling.fits import Run, fit_laws, fit_loss_law
from cwm_jax.training.scaling.laws import load_laws, save_laws
from cwm_jax.training.scaling.repetition import (
    effective_tokens,
    fit_repetition,
    target_epochs,
    worth_of_epoch,
)

A, B, C, D = 3.0, -0.18, 0.5, 0.3  # LR = A C^B, batch = C C^D of the made-up sweeps
SCALES = (1e14, 4e14, 1.6e15)
SIZES, LENGTHS = np.geomspace(1e6, 1e9, 4), np.geomspace(1e8, 1e11, 4)
LOSS_LAW = dict(irreducible=1.7, params_factor=400.0, params_exponent=0.34) | dict(
    tokens_factor=410.0, tokens_exponent=0.28
)


def sweep(seed=0, *, per_scale=16, noise=0.0, batches=True, low=-1.6, high=1.6, scales=SCALES):
    """Runs at random rates and batches around the optimum, whose valley is tilted."""
    rng = np.random.default_rng(seed)
    runs = []
    for scale in scales:
        for u, v in rng.uniform([low, -1.2], [high, 1.2], (per_scale, 2)).tolist():
            v = v if batches else 0.0
            excess = 0.02 * u * u + 0.01 * u * v + 0.01 * v * v + noise * rng.standard_normal()
            batch = C * scale**D * math.exp(v) if batches else 4096
            floor = 2 + 30 * scale**-0.1
            runs.append(
                Run(
                    compute=scale,
                    learning_rate=A * scale**B * math.exp(u),
                    batch_tokens=batch,
                    loss=floor * math.exp(excess),
                    params=1e6,
                    tokens=1e7,
                )
            )
    return runs


def fitted(runs, **changes):
    options = dict(flops_count="windows", source="made up", num_bootstrap=20) | changes
    return fit_laws(runs, **options)


# Rate and batch


def test_laws_without_noise_are_found_exactly():
    fit = fitted(sweep())
    laws = fit.laws
    assert laws.batch_tokens is not None
    found = (laws.learning_rate.factor, laws.learning_rate.exponent)
    found += (laws.batch_tokens.factor, laws.batch_tokens.exponent)
    assert found == pytest.approx((A, B, C, D), rel=1e-6)
    assert np.array(fit.curvature) == pytest.approx(np.array([[0.02, 0.005], [0.005, 0.01]]))
    for scale, compute in zip(fit.per_scale, SCALES, strict=True):
        assert scale.compute_flops == pytest.approx(compute)
        assert scale.learning_rate == pytest.approx(A * compute**B, rel=1e-6)
        assert scale.batch_tokens == pytest.approx(C * compute**D, rel=1e-6)
        assert scale.at_edge == ()
    assert (laws.flops_count, laws.source) == ("windows", "made up")
    assert laws.compute_range == pytest.approx((1e14, 1.6e15))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 95 % intervals of 14 sweeps at least 85 % do: a, b, c, d, and a scale far outside."""
    held = []
    for seed in range(14):
        fit = fitted(sweep(seed, noise=0.004), num_bootstrap=50, seed=seed)
        held += [
            low <= truth <= high
            for truth, (low, high) in zip((A, B, C, D), fit.intervals.values(), strict=True)
        ]
        _, low, high = fit.predict_learning_rate(1e17)
        held.append(low <= A * 1e17**B <= high)
        held += [
            s.learning_rate_interval[0] <= A * s.compute_flops**B <= s.learning_rate_interval[1]
            for s in fit.per_scale
        ]
    assert list(fit.intervals) == ["a", "b", "c", "d"]
    assert 0.85 <= np.mean(held) < 1


def test_more_noise_makes_wider_intervals():
    widths = []
    for noise in (0.001, 0.004):
        _, low, high = fitted(sweep(noise=noise), num_bootstrap=60).predict_learning_rate(1e17)
        widths.append(math.log(high / low))
    assert widths[1] > 2 * widths[0] > 0


def test_runs_that_went_wrong_do_not_move_the_fit():
    """One in eight lost 2 % by chance, near the optimum; least squares would follow them."""
    runs = sweep(noise=1e-5)
    spoilt = [
        dataclasses.replace(run, loss=run.loss * 1.02) if number % 8 == 0 else run
        for number, run in enumerate(runs)
    ]
    law = fitted(spoilt).laws.learning_rate
    assert law(1e15) == pytest.approx(A * 1e15**B, rel=0.01)


def test_diverged_and_far_runs_are_dropped_and_counted():
    runs = sweep()
    wild = [dataclasses.replace(runs[0], loss=x) for x in (math.nan, math.inf, 11.0, -1.0)]
    fit = fitted([*runs, *wild])
    far = sum(
        run.loss > 1.05 * min(r.loss for r in runs if r.compute == run.compute)
        for run in [*runs, wild[2]]
    )
    assert fit.dropped == {"loss not finite": 3, "more than 5% above the best of its scale": far}
    assert fit.laws.learning_rate.exponent == pytest.approx(B, rel=1e-6)
    assert sum(scale.num_near for scale in fit.per_scale) == len(runs) + 1 - far


def test_with_one_batch_the_rate_alone_is_fitted(tmp_path):
    runs = sweep(batches=False, per_scale=8)
    for each in (runs, [dataclasses.replace(r, batch_tokens=r.compute**0.3) for r in runs]):
        fit = fitted(each)
        assert fit.laws.batch_tokens is None and list(fit.intervals) == ["a", "b"]
        assert fit.laws.learning_rate.exponent == pytest.approx(B, rel=1e-6)
        assert fit.per_scale[0].batch_tokens is None
        with pytest.raises(ValueError, match="had one batch at each scale"):
            fit.predict_batch_tokens(1e15)


def test_computes_that_differ_by_whole_steps_are_one_scale():
    rng = np.random.default_rng(0)
    runs = [
        dataclasses.replace(run, compute=run.compute * rng.uniform(0.985, 1.015)) for run in sweep()
    ]
    fit = fitted(runs)
    assert len(fit.per_scale) == 3
    assert fit.laws.learning_rate(1e15) == pytest.approx(A * 1e15**B, rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "edge"),
    [(-1.6, -0.02, ("highest rate",)), (0.02, 1.6, ("lowest rate",)), (-1.6, 1.6, ())],
)
def test_an_optimum_at_the_edge_of_the_search_is_told(low, high, edge):
    fit = fitted(sweep(low=low, high=high))
    assert [scale.at_edge for scale in fit.per_scale] == [edge] * 3


def test_a_rate_that_diverged_was_searched_too():
    runs = sweep(low=-1.6, high=-0.02)
    above = [
        dataclasses.replace(runs[0], compute=s, learning_rate=A * s**B * 2, loss=math.nan)
        for s in SCALES
    ]
    assert [scale.at_edge for scale in fitted([*runs, *above]).per_scale] == [()] * 3


def test_a_fit_is_kept_with_its_laws_and_repeats_itself(tmp_path):
    fit = fitted(sweep(noise=0.002))
    save_laws(tmp_path / "laws.json", fit.laws, extra=fit.to_json())
    loaded = load_laws(tmp_path / "laws.json")
    assert loaded == fit.laws and loaded.batch_tokens is not None
    value, low, high = fit.predict_batch_tokens(1e16)
    assert (loaded.batch_tokens(1e16), loaded.batch_tokens.interval(1e16)) == (value, (low, high))
    assert low < value < high
    assert fitted(sweep(noise=0.002)) == fit
    assert fitted(sweep(noise=0.002), seed=1).intervals != fit.intervals
    assert fit.num_draws + fit.lost_draws == 20


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (sweep(scales=SCALES[:1]), "about 1e.14 FLOP; expected two scales"),
        (sweep(per_scale=4), "FLOP has . different settings .* expected 6 or more"),
        ([dataclasses.replace(r, loss=math.nan) for r in sweep()], "no run has a finite loss"),
        ([], "no run has a finite loss"),
    ],
    ids=["one_scale", "few", "diverged", "none"],
)
def test_runs_that_cannot_tell_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        fitted(runs)


def test_a_hill_is_refused():
    runs = [dataclasses.replace(run, loss=1 / run.loss) for run in sweep()]
    with pytest.raises(ValueError, match=r"no minimum between the values tried, rates 0\.00"):
        fitted(runs, near_optimum=1.0)


def test_a_valley_that_many_draws_do_not_see_is_refused():
    runs = sweep(noise=0.006, per_scale=10, low=-0.5, high=0.5)
    with pytest.raises(ValueError, match=r"1. of 20 bootstrap draws have no minimum between"):
        fitted(runs, near_optimum=1.0)


def test_draws_whose_optimum_is_no_number_are_lost():
    """Scales so close that a slope is anything: some factors of draws lie beyond 1e308."""
    runs = sweep(2, noise=0.02, scales=(1e14, 1.2e14))
    fit = fitted(runs, near_optimum=1.0, num_bootstrap=40)
    assert fit.lost_draws > 0 and fit.num_draws + fit.lost_draws == 40
    for law in (fit.laws.learning_rate, fit.laws.batch_tokens):
        assert law is not None and np.isfinite(law.draws).all()
        low, high = law.interval(1e14) or (math.nan, math.nan)
        assert 0 < low < high < math.inf


@pytest.mark.parametrize("name", ["compute", "learning_rate", "batch_tokens", "params", "tokens"])
def test_a_run_without_a_size_is_refused(name):
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"Run\.{name} is .*; expected a finite number"):
            dataclasses.replace(sweep()[0], **{name: value})


# The loss law


def loss_at(params, tokens, law=LOSS_LAW):
    E, a, alpha, b, beta = law.values()
    return E + a * params**-alpha + b * tokens**-beta


def grid(noise=0.0, seed=0, pairs=None):
    rng = np.random.default_rng(seed)
    pairs = pairs or [(N, D) for N in SIZES.tolist() for D in LENGTHS.tolist()]
    return [
        Run(
            compute=6 * N * D,
            learning_rate=1e-3,
            batch_tokens=1024,
            loss=loss_at(N, D) * math.exp(noise * rng.standard_normal()),
            params=N,
            tokens=D,
        )
        for N, D in pairs
    ]


def test_a_loss_law_is_found_again_and_its_optimum_is_the_least_loss():
    law = fit_loss_law(grid(), num_bootstrap=0)
    assert {name: getattr(law, name) for name in LOSS_LAW} == pytest.approx(LOSS_LAW, rel=1e-4)
    assert law.at_bound == () and law.num_points == 16
    compute = 1e21
    N, D = law.optimum(compute)
    assert pytest.approx(compute, rel=1e-9) == 6 * N * D
    sizes = np.geomspace(1e8, 1e11, 20_001)
    best = sizes[np.argmin([law(n, compute / 6 / n) for n in sizes])]
    assert pytest.approx(best, rel=1e-3) == N


def test_intervals_of_the_loss_law_hold_the_truth():
    held = []
    for seed in range(6):
        law = fit_loss_law(grid(0.003, seed), num_bootstrap=30, seed=seed)
        held += [
            law.intervals[name][0] <= LOSS_LAW[name] <= law.intervals[name][1] for name in LOSS_LAW
        ]
        (low, high), _ = law.optimum_intervals(1e21)
        held.append(low <= 1.783e9 <= high)  # of the law without noise
    assert 0.8 <= np.mean(held) < 1
    assert law.to_json()["intervals"].keys() == LOSS_LAW.keys()


def test_the_best_setting_of_a_size_counts_and_seeds_are_averaged():
    runs = grid()
    worse = [dataclasses.replace(r, learning_rate=1e-2, loss=r.loss * 1.1) for r in runs]
    lucky = [dataclasses.replace(r, learning_rate=1e-2, loss=r.loss * 0.95, seed=1) for r in runs]
    shorter = [
        dataclasses.replace(r, batch_tokens=999, tokens=r.tokens * 0.999, loss=9.9) for r in runs
    ]
    diverged = [dataclasses.replace(r, learning_rate=1.0, loss=math.nan) for r in runs]
    law = fit_loss_law([*runs, *worse, *lucky, *shorter, *diverged], num_bootstrap=0)
    assert law.num_points == 16
    assert law(1e8, 1e10) == pytest.approx(loss_at(1e8, 1e10), rel=1e-3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(N, 20 * N) for N in np.geomspace(1e6, 1e9, 9)], r"D goes with N \(as N\^1.00, .*apart"),
        ([(N, D) for N in SIZES[:2] for D in LENGTHS], "8 pairs .* of 2 N and 4 D; expected 7"),
        ([(N, D) for N in SIZES for D in LENGTHS[:2]], "8 pairs .* of 4 N and 2 D; expected 7"),
        ([(N, D) for N in SIZES[:2] for D in LENGTHS[:3]], "6 pairs .* such as each of three"),
    ],
    ids=["collinear", "sizes", "lengths", "few"],
)
def test_runs_that_leave_the_loss_law_open_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        fit_loss_law(grid(pairs=pairs))


def test_a_term_that_makes_no_difference_is_told():
    runs = [dataclasses.replace(r, loss=loss_at(1e8, r.tokens)) for r in grid()]
    assert "params_exponent" in fit_loss_law(runs, num_bootstrap=0).at_bound or (
        "params_factor" in fit_loss_law(runs, num_bootstrap=0).at_bound
    )


# Repetition


def fresh_loss(tokens):
    return 2 + 300 * tokens**-0.3


def repeated(half_life, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    epochs = np.repeat([1.0, 2, 4, 8, 16, 32, 64], 2)
    return [
        (
            1e8 / e,
            1e8,
            fresh_loss(effective_tokens(1e8 / e, e, half_life))
            * math.exp(noise * rng.standard_normal()),
        )
        for e in epochs.tolist()
    ]


def test_effective_tokens_are_the_sum_of_what_each_repetition_adds():
    """d/dR of U R* (1 - exp(-R / R*)) is U exp(-R / R*)."""
    rest = np.linspace(0, 3.5, 100_001)
    expected = 1e9 * (1 + np.trapezoid(np.exp(-rest / 5), rest))
    assert effective_tokens(1e9, 4.5, 5.0) == pytest.approx(expected, rel=1e-8)
    assert effective_tokens(1e9, 1.0, 5.0) == 1e9 and effective_tokens(1e9, 0.25, 5.0) == 0.25e9
    assert effective_tokens(1.0, 1e9, 5.0) == pytest.approx(6.0)  # never more than 1 + R*
    for epochs, half_life in ((-1.0, 5.0), (2.0, 0.0)):
        with pytest.raises(ValueError, match="expected 0 epochs or more, and a half-life above 0"):
            effective_tokens(1.0, epochs, half_life)


@pytest.mark.parametrize("half_life", [0.5, 5.0, 15.0, 60.0])
def test_a_half_life_is_found_again(half_life):
    fit = fit_repetition(repeated(half_life), fresh_loss, num_bootstrap=20)
    assert fit.half_life == pytest.approx(half_life, rel=0.002)
    assert fit.num_points == 12 and not fit.at_bound
    low, high = fit.half_life_interval
    assert low == pytest.approx(half_life, rel=0.005) == high


def test_intervals_of_the_half_life_hold_it():
    held = []
    for seed in range(20):
        fit = fit_repetition(repeated(15.0, 0.003, seed), fresh_loss, num_bootstrap=100)
        low, high = fit.half_life_interval
        held.append(low <= 15 <= high)
    assert np.mean(held) >= 0.8 and fit.to_json()["half_life"] == fit.half_life


def test_repetition_without_harm_has_no_half_life():
    harmless = [(unique, tokens, fresh_loss(tokens)) for unique, tokens, _ in repeated(5.0)]
    assert fit_repetition(harmless, fresh_loss, num_bootstrap=2).at_bound
    with pytest.raises(ValueError, match="2 of 3 runs read a token twice; expected three"):
        fit_repetition([(1.0, 2.0, 3.0)] * 2 + [(2.0, 2.0, 3.0)], fresh_loss)


def test_target_epochs_and_the_shares_that_follow():
    """The mean worth in the second, third and fourth epoch is 0.787, 0.477, 0.289 at R* = 2."""
    worths = [worth_of_epoch(n, 2.0) for n in (1, 2, 3, 4)]
    assert worths == pytest.approx([1, 0.787, 0.477, 0.289], abs=6e-4)
    unique = {"traces": 1e9, "code": 3e9}
    found = target_epochs(unique, half_life=2.0, total_tokens=1e10, min_worth=0.5)
    assert [(s.epochs, s.share) for s in found.values()] == [(2, 0.2), (2, 0.6)]
    assert found["code"].worth_of_last == pytest.approx(0.787, abs=5e-4)
    decays = {"traces": 15.0, "code": 0.1}
    found = target_epochs(unique, half_life=decays, total_tokens=1e10, min_worth=0.5)
    assert [(s.epochs, s.share) for s in found.values()] == [(4, 0.4), (1, 0.3)]


def test_target_epochs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"ask for 133\.3% of 3,000 tokens \(a 4 x 1,000\)"):
        target_epochs({"a": 1e3}, half_life=15.0, total_tokens=3e3)
    for wrong in (dict(min_worth=0.0), dict(min_worth=1.1), dict(max_epochs=0)):
        with pytest.raises(ValueError, match="expected a share of a fresh token's worth"):
            target_epochs({"a": 1e3}, half_life=15.0, total_tokens=1e4, **wrong)
