"""A sweep for people: its runs beforehand, and Markdown with plots afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cwm_jax.config import SweepConfig
from cwm_jax.storage import write_whole
from cwm_jax.sweeps import findings, plots
from cwm_jax.sweeps.design import (
    confirmation_runs,
    loss_runs,
    repetition_runs,
    scale_tokens,
    search_runs,
)
from cwm_jax.sweeps.findings import Factor, loss_of
from cwm_jax.sweeps.records import RunRecord, SweepFolder, by_kind
from cwm_jax.training.scaling.fits import LawFit, ScaleOptimum
from cwm_jax.training.scaling.flops import num_non_embedding_parameters
from cwm_jax.training.scaling.laws import REPORT_LAWS, PowerLaw
from cwm_jax.training.scaling.repetition import worth_of_epoch

REPORT_FILE = "report.md"
CWM_COMPUTE_FLOPS = 4.1e24  # calculated from the report: 8T tokens at 8k, 5T at 131k


def describe_design(config: SweepConfig, count: int) -> str:
    """The scales, and what all runs together cost."""
    specs = search_runs(config, count)
    lines = [f"sweep {config.base.run_name}: {count} runs at each of {len(config.scales)} scales"]
    for number, scale in enumerate(config.scales):
        N, D = num_non_embedding_parameters(scale.model), scale_tokens(config, scale)
        steps = [s.steps for s in specs if s.name.startswith(f"search/{number}/")]
        lines.append(
            f"  {scale.compute_flops:9.3g} FLOP  {N:>13,} parameters  {D:>15,.0f} tokens "
            f"({D / N:.3g} each)  {min(steps):,} to {max(steps):,} steps"
        )
    tests = [*confirmation_runs(config, _anything, _anything)]
    tests += loss_runs(config, _anything, _anything)
    tests += repetition_runs(config, _anything, _anything)
    flops = [sum(spec.scale.compute_flops for spec in runs) for runs in (specs, tests)]
    lines.append(f"  search {flops[0]:.3g} FLOP, then {len(tests)} runs of {flops[1]:.3g} FLOP")
    return "\n".join(lines)


def write(
    config: SweepConfig,
    folder: SweepFolder,
    fit: LawFit,
    records: Sequence[RunRecord],
    corpus_tokens: int,
) -> str:
    """Writes ``report.md`` and plots; returns the report's text.

    Args:
        config: of the sweep.
        folder: of the sweep.
        fit: of the search.
        records: of all runs.
        corpus_tokens: different training tokens that there are.
    """
    factors = findings.confirmed(by_kind(records, "confirmation"))
    _plot(folder.path / "laws.png", plots.plot_laws, config, fit, records, factors)
    lines = [
        f"# Sweep {config.base.run_name}",
        "",
        *_settings(config, records, corpus_tokens),
        "",
        *_laws(fit),
        "",
        *_scales(fit.per_scale),
        "",
        "![laws](laws.png)",
        "",
        *_confirmation(config, factors),
        *_loss_law(config, records),
        *_repetition(records),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    write_whole(folder.path / REPORT_FILE, text.encode())
    return text


def _settings(config: SweepConfig, records: Sequence[RunRecord], corpus_tokens: int) -> list[str]:
    longest = max(record.tokens for record in records)
    devices = sorted({record.device for record in records})
    epochs = longest / corpus_tokens
    repeated = f": **the longest run sees {epochs:.2g} epochs**" if epochs > 1 else ""
    return [
        f"{len(by_kind(records, 'search'))} runs of the search, {len(records)} in all, "
        f"{sum(r.time_s for r in records):,.0f} s on {', '.join(devices)}. Peak rate "
        f"{config.learning_rates[0]:g} to {config.learning_rates[1]:g}, batch "
        f"{config.batch_tokens[0]:,} to {config.batch_tokens[1]:,} tokens (Sobol), seeds "
        f"{', '.join(map(str, config.seeds))}. Compute counts attention as `{config.flops_count}` "
        f"does. {corpus_tokens:,} training tokens{repeated}.",
    ]


def _laws(fit: LawFit) -> list[str]:
    low, high = fit.laws.compute_range or (0.0, 0.0)
    lines = [
        "| law | factor (95 %) | exponent (95 %) | report's |",
        "|---|---|---|---|",
        _law_row("learning rate", fit.laws.learning_rate, REPORT_LAWS.learning_rate),
    ]
    if fit.laws.batch_tokens is not None and REPORT_LAWS.batch_tokens is not None:
        lines.append(_law_row("batch, tokens", fit.laws.batch_tokens, REPORT_LAWS.batch_tokens))
    dropped = ", ".join(f"{count} {reason}" for reason, count in fit.dropped.items()) or "none"
    rate = fit.laws.learning_rate
    between = rate.interval(CWM_COMPUTE_FLOPS)
    spread = f" ({between[0]:.2g} to {between[1]:.2g})" if between else ""
    return [
        *lines,
        "",
        f"Fitted on {low:.3g} to {high:.3g} FLOP; runs left out: {dropped}; bootstrap draws "
        f"without a minimum: {fit.lost_draws} of {fit.num_draws + fit.lost_draws}. At CWM's "
        f"compute of "
        f"{CWM_COMPUTE_FLOPS:.2g} FLOP, {CWM_COMPUTE_FLOPS / high:.1g} times beyond the fit, it "
        f"would say {rate(CWM_COMPUTE_FLOPS):.2g}{spread}; the report's says "
        f"{REPORT_LAWS.learning_rate(CWM_COMPUTE_FLOPS):.2g}.",
    ]


def _law_row(name: str, law: PowerLaw, reports: PowerLaw) -> str:
    factor, exponent = (
        f"{value:.4g}" + (f" ({low_high[0]:.3g} to {low_high[1]:.3g})" if low_high else "")
        for value, low_high in (
            (law.factor, law.factor_interval),
            (law.exponent, law.exponent_interval),
        )
    )
    return f"| {name} | {factor} | {exponent} | {reports.factor} C^{reports.exponent} |"


def _scales(scales: Sequence[ScaleOptimum]) -> list[str]:
    lines = [
        "Each scale by itself:",
        "",
        "| FLOP | parameters | runs | near the best | least loss | best rate (95 %) | "
        "best batch (95 %) | at an edge |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale in scales:
        rate = _value(scale.learning_rate, scale.learning_rate_interval)
        batch = _value(scale.batch_tokens, scale.batch_interval)
        lines.append(
            f"| {scale.compute_flops:.3g} | {scale.params:,.0f} | {scale.num_runs} | "
            f"{scale.num_near} | {scale.best_loss:.4f} | {rate} | {batch} | "
            f"{', '.join(scale.at_edge) or '-'} |"
        )
    return lines


def _value(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "no minimum"
    spread = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
    return f"{value:.3g}{spread}"


def _confirmation(config: SweepConfig, factors: Sequence[Factor]) -> list[str]:
    if config.confirmation is None or not factors:
        return []
    C = config.confirmation.scale.compute_flops
    lines = [
        f"At {C:.3g} FLOP, which the fit has not seen, the law's rate is "
        f"{factors[0].learning_rate / factors[0].factor:.3g}; held-out losses, nats per token:",
        "",
        "| rate | losses by seed | more than the law's (95 %, paired t) | |",
        "|---|---|---|---|",
        f"| the law's | {_losses(factors[0].law_losses)} | | |",
    ]
    for factor in factors:
        found = factor.difference
        interval = found.interval if found else None
        shown = "diverged" if found is None else f"{found.mean:+.4f}"
        shown += f" ({interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
        verdict = "worse" if factor.is_beaten else "not shown to be worse"
        lines.append(f"| x {factor.factor:g} | {_losses(factor.losses)} | {shown} | {verdict} |")
    return [*lines, ""]


def _losses(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _loss_law(config: SweepConfig, records: Sequence[RunRecord]) -> list[str]:
    try:
        law = findings.fit_loss(config, records)
    except ValueError as error:
        return [f"No loss law: {error}.", ""]
    spread = {name: f" ({low:.3g} to {high:.3g})" for name, (low, high) in law.intervals.items()}
    values = ", ".join(
        f"{symbol} {getattr(law, name):.4g}{spread.get(name, '')}"
        for symbol, name in (
            ("E", "irreducible"),
            ("A", "params_factor"),
            ("alpha", "params_exponent"),
            ("B", "tokens_factor"),
            ("beta", "tokens_exponent"),
        )
    )
    open_ones = f" The runs leave open: {', '.join(law.at_bound)}." if law.at_bound else ""
    return [
        f"Loss of the best runs: L(N, D) = E + A / N^alpha + B / D^beta with {values} (95 %); "
        f"{law.num_points} pairs of N and D.{open_ones}",
        "",
    ]


def _repetition(records: Sequence[RunRecord]) -> list[str]:
    try:
        fit = findings.fit_repeated(records)
    except ValueError as error:
        return [f"No repetition law: {error}.", ""]
    if fit is None:
        return []
    lines = ["| epochs | different tokens | loss by seed |", "|---|---|---|"]
    runs: dict[int, list[RunRecord]] = {}
    for record in by_kind(records, "repeated"):
        runs.setdefault(record.unique_tokens or record.tokens, []).append(record)
    total = max(record.tokens for record in by_kind(records, "repeated"))
    for unique, found in sorted(runs.items(), reverse=True):
        losses = _losses([loss_of(record) for record in found])
        lines.append(f"| {found[0].tokens / unique:.3g} | {unique:,} | {losses} |")
    low, high = fit.half_life_interval
    worth = ", ".join(f"{worth_of_epoch(n, fit.half_life):.2f}" for n in (2, 3, 4, 8))
    limit = " It lies at the end of what was tried: these runs do not tell it." * fit.at_bound
    return [
        f"Repeated tokens, of {total:,}:",
        "",
        *lines,
        "",
        f"R* = {fit.half_life:.3g} epochs (95 %: {low:.3g} to {high:.3g}): a token of the 2nd, "
        f"3rd, 4th, 8th epoch is worth {worth} fresh ones.{limit}",
        "",
    ]


def _plot(path: Path, draw, *values) -> None:
    beside = path.with_name(f".partial-{path.name}")
    draw(beside, *values)
    os.replace(beside, path)


def _anything(_: float) -> float:
    """In place of a law, where only the number of runs and their compute are wanted."""
    return 1.0
