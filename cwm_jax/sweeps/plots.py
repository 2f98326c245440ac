"""The plots of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cwm_jax.config import SweepConfig
from cwm_jax.sweeps.findings import Factor, loss_of
from cwm_jax.sweeps.records import RunRecord, by_kind
from cwm_jax.training.scaling.fits import LawFit
from cwm_jax.training.scaling.flops import num_non_embedding_parameters
from cwm_jax.training.scaling.laws import REPORT_LAWS, PowerLaw


def plot_laws(
    path: Path,
    config: SweepConfig,
    fit: LawFit,
    records: Sequence[RunRecord],
    factors: Sequence[Factor],
) -> None:
    """Losses of the search, both laws with their bands, and the scale that was left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9))
    _plot_search(axes[0, 0], config, by_kind(records, "search"))
    _plot_factors(axes[0, 1], factors)
    optima = fit.per_scale
    x = [scale.compute_flops for scale in optima]
    rates = [(s.learning_rate, s.learning_rate_interval) for s in optima]
    _plot_law(axes[1, 0], fit.laws.learning_rate, REPORT_LAWS.learning_rate, x, rates)
    axes[1, 0].set(title="best peak learning rate", xlabel="compute, FLOP")
    if fit.laws.batch_tokens is not None and REPORT_LAWS.batch_tokens is not None:
        batches = [(s.batch_tokens, s.batch_interval) for s in optima]
        _plot_law(axes[1, 1], fit.laws.batch_tokens, REPORT_LAWS.batch_tokens, x, batches)
    axes[1, 1].set(title="best batch, tokens", xlabel="compute, FLOP")
    figure.tight_layout()
    figure.savefig(path, dpi=100, format="png")
    pyplot.close(figure)


def _plot_search(axis: Any, config: SweepConfig, search: Sequence[RunRecord]) -> None:
    for scale in config.scales:
        params = num_non_embedding_parameters(scale.model)
        runs = [r for r in search if (r.compute_flops, r.params) == (scale.compute_flops, params)]
        sizes = [8 + 40 * r.batch_tokens / config.batch_tokens[1] for r in runs]
        axis.scatter(
            [r.learning_rate for r in runs],
            [loss_of(r) for r in runs],
            s=sizes,
            label=f"{scale.compute_flops:.2g} FLOP, {params / 1e6:.2g}M",
        )
    axis.set(
        title="search: a point a run, its size the batch",
        xlabel="peak learning rate",
        ylabel="held-out loss, nats per token",
        xscale="log",
        yscale="log",
    )
    axis.legend(fontsize=7)


def _plot_factors(axis: Any, factors: Sequence[Factor]) -> None:
    axis.set(title="left out of the fit: rates around the law's", xlabel="x the law's rate")
    if not factors:
        return
    law_losses = factors[0].law_losses
    columns = sorted([(f.factor, f.losses) for f in factors] + [(1.0, law_losses)])
    for seed, losses in enumerate(zip(*(losses for _, losses in columns), strict=True)):
        axis.plot([factor for factor, _ in columns], losses, marker="o", label=f"seed {seed}")
    axis.set(xscale="log", ylabel="held-out loss, nats per token")
    axis.set_xticks([f for f, _ in columns], [f"{f:g}" for f, _ in columns])
    axis.minorticks_off()
    axis.legend(fontsize=7)


def _plot_law(
    axis: Any,
    law: PowerLaw,
    reports: PowerLaw,
    compute: Sequence[float],
    optima: Sequence[tuple[float | None, tuple[float, float] | None]],
) -> None:
    line = np.geomspace(min(compute) / 2, max(compute) * 8, 50).tolist()
    axis.plot(line, [law(C) for C in line], label=f"fit: {law}")
    if law.draws:
        bands = np.array([law.interval(C) for C in line])
        axis.fill_between(line, *bands.T, alpha=0.2, label="95 % of the bootstrap")
    label = f"report's, extrapolated: {reports}"
    axis.plot(line, [reports(C) for C in line], linestyle=":", label=label)
    for C, (value, interval) in zip(compute, optima, strict=True):
        if value is not None:
            low, high = interval or (value, value)
            axis.errorbar(C, value, [[max(0, value - low)], [max(0, high - value)]], fmt="ko")
    axis.set(xscale="log", yscale="log")
    axis.legend(fontsize=7)
