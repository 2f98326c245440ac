"""What laws derive for a ladder of models, with windows counted or not, beside what was used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from cwm_jax.config import ModelConfig, RunConfig
from cwm_jax.training.scaling.flops import (
    FLOPS_COUNTS,
    FlopsCount,
    law_flops_per_token,
    num_non_embedding_parameters,
)
from cwm_jax.training.scaling.laws import Laws


@dataclasses.dataclass(frozen=True)
class Phase:
    """So many tokens in rows of one context."""

    model: ModelConfig
    context_tokens: int
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderRun:
    """One schedule, of one phase or of several.

    Attributes:
        phases: in their order.
        used_learning_rate: what its configs have in the place of a law.
        used_batch_tokens: likewise, one after another.
    """

    phases: tuple[Phase, ...]
    used_learning_rate: float | None = None
    used_batch_tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived:
    """What a law gives for one count of FLOPs."""

    flops_per_token: tuple[float, ...]
    """M of each phase."""
    compute_flops: float
    learning_rate: float
    learning_rate_interval: tuple[float, float] | None
    batch_tokens: float | None
    batch_interval: tuple[float, float] | None
    steps: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderRow:
    """One run of the ladder."""

    name: str
    run: LadderRun
    params: int
    """Without embeddings."""
    tokens: int
    by_count: Mapping[FlopsCount, Derived]


def ladder(runs: Mapping[str, LadderRun], laws: Laws) -> list[LadderRow]:
    """The laws at each run's compute, in either count; the laws were fitted in one of them."""
    return [
        LadderRow(
            name=name,
            run=run,
            params=num_non_embedding_parameters(run.phases[-1].model),
            tokens=sum(phase.tokens for phase in run.phases),
            by_count={count: _derived(run, laws, count) for count in FLOPS_COUNTS},
        )
        for name, run in runs.items()
    ]


def runs_of_configs(configs: Iterable[RunConfig]) -> dict[str, LadderRun]:
    """One run of each config; those that go on in one schedule, of one horizon, are one together.

    Tokens of a horizon that none of them trains on count in the context of the last.
    """
    groups: list[list[RunConfig]] = []
    for config in sorted(configs, key=lambda c: c.optimizer.start_tokens):
        before = next((g for g in groups if _goes_on(g[-1], config)), None)
        if before is None:
            groups.append([config])
        else:
            before.append(config)
    runs = {" + ".join(c.run_name for c in group): _run_of(group) for group in groups}
    return dict(sorted(runs.items(), key=lambda item: _size(item[1])))


def tables(rows: Sequence[LadderRow], laws: Laws) -> str:
    """Markdown: derived settings, what counting windows changes, what was used instead."""
    other: FlopsCount = "windows" if laws.flops_count == "report" else "report"
    parts = [
        f"Laws: learning rate {laws.learning_rate}; batch {laws.batch_tokens or 'not fitted'}; "
        f"{laws.describe()}. C = M x tokens in FLOP, M in the {laws.flops_count} count.",
        _settings_table(rows, laws),
        f"The same laws at the C of the {other} count; they were fitted in the "
        f"{laws.flops_count} count:",
        _counts_table(rows, laws.flops_count, other),
    ]
    used = [row for row in rows if row.run.used_learning_rate or row.run.used_batch_tokens]
    if used:
        parts += [
            "What the configs use in the place of these laws, and how far that is from them:",
            _used_table(used, laws.flops_count),
        ]
    return "\n\n".join(parts)


def _derived(run: LadderRun, laws: Laws, count: FlopsCount) -> Derived:
    M = [law_flops_per_token(p.model, p.context_tokens, count=count) for p in run.phases]
    C = sum(m * phase.tokens for m, phase in zip(M, run.phases, strict=True))
    batch = laws.batch_tokens(C) if laws.batch_tokens else None
    tokens = sum(phase.tokens for phase in run.phases)
    return Derived(
        flops_per_token=tuple(M),
        compute_flops=C,
        learning_rate=laws.learning_rate(C),
        learning_rate_interval=laws.learning_rate.interval(C),
        batch_tokens=batch,
        batch_interval=laws.batch_tokens.interval(C) if laws.batch_tokens else None,
        steps=math.ceil(tokens / batch) if batch else None,
    )


def _goes_on(before: RunConfig, config: RunConfig) -> bool:
    old, new = before.optimizer, config.optimizer
    return (
        new.horizon_tokens is not None
        and new.horizon_tokens == old.horizon_tokens
        and new.learning_rate == old.learning_rate
        and new.start_tokens == old.start_tokens + old.train_tokens
        and num_non_embedding_parameters(before.model) == num_non_embedding_parameters(config.model)
    )


def _run_of(configs: Sequence[RunConfig]) -> LadderRun:
    phases = [Phase(c.model, c.batch.max_target_length, c.optimizer.train_tokens) for c in configs]
    last = configs[-1].optimizer
    covered = sum(phase.tokens for phase in phases)
    horizon = last.horizon_tokens or last.start_tokens + last.train_tokens
    rest = horizon - covered
    phases[-1] = dataclasses.replace(phases[-1], tokens=phases[-1].tokens + rest)
    rate = last.learning_rate
    return LadderRun(
        phases=tuple(phases),
        used_learning_rate=None if isinstance(rate, str) else rate,
        used_batch_tokens=tuple(dict.fromkeys(b for c in configs for b in _used_batches(c))),
    )


def _used_batches(config: RunConfig) -> list[int]:
    batch, optimizer = config.batch.global_batch_tokens, config.optimizer
    if isinstance(batch, int):
        return [batch]
    if not isinstance(batch, tuple):
        return []  # by a law, or by the devices
    begin, end = optimizer.start_tokens, optimizer.start_tokens + optimizer.train_tokens
    ends = [phase.from_tokens for phase in batch[1:]] + [end]
    return [
        phase.batch_tokens
        for phase, until in zip(batch, ends, strict=True)
        if phase.from_tokens < end and until > begin
    ]


def _size(run: LadderRun) -> tuple[int, int]:
    tokens = sum(phase.tokens for phase in run.phases)
    return num_non_embedding_parameters(run.phases[-1].model), tokens


def _settings_table(rows: Sequence[LadderRow], laws: Laws) -> str:
    head = ["run", "N", "tokens", "context", "M", "C", "fitted range", "rate", "batch", "steps"]
    with_intervals = bool(laws.learning_rate.draws)
    if with_intervals:
        head += ["rate, 95 %", "batch, 95 %"]
    cells = []
    for row in rows:
        d = row.by_count[laws.flops_count]
        line = [
            row.name,
            _count(row.params),
            _count(row.tokens),
            ", ".join(f"{phase.context_tokens:,}" for phase in row.run.phases),
            ", ".join(f"{m:.3g}" for m in d.flops_per_token),
            f"{d.compute_flops:.3g}",
            laws.distance(d.compute_flops),
            _rate(d.learning_rate),
            _count(d.batch_tokens),
            f"{d.steps:,}" if d.steps else "-",
        ]
        if with_intervals:
            line += [_pair(d.learning_rate_interval, _rate), _pair(d.batch_interval, _count)]
        cells.append(line)
    return _table(head, cells)


def _counts_table(rows: Sequence[LadderRow], fitted: FlopsCount, other: FlopsCount) -> str:
    head = ["run", f"M, {other}", f"C, {other}", "C by", "rate", "by", "batch", "by"]
    cells = []
    for row in rows:
        old, new = row.by_count[fitted], row.by_count[other]
        cells.append(
            [
                row.name,
                ", ".join(f"{m:.3g}" for m in new.flops_per_token),
                f"{new.compute_flops:.3g}",
                _change(new.compute_flops, old.compute_flops),
                _rate(new.learning_rate),
                _change(new.learning_rate, old.learning_rate),
                _count(new.batch_tokens),
                _change(new.batch_tokens, old.batch_tokens),
            ]
        )
    return _table(head, cells)


def _used_table(rows: Sequence[LadderRow], count: FlopsCount) -> str:
    head = ["run", "rate of the law", "rate used", "by", "batch of the law", "batch used", "by"]
    cells = []
    for row in rows:
        d, rate, batches = (
            row.by_count[count],
            row.run.used_learning_rate,
            row.run.used_batch_tokens,
        )
        cells.append(
            [
                row.name,
                _rate(d.learning_rate),
                _rate(rate) if rate else "-",
                _change(rate, d.learning_rate),
                _count(d.batch_tokens),
                ", then ".join(_count(batch) for batch in batches) or "-",
                ", then ".join(_change(batch, d.batch_tokens) for batch in batches) or "-",
            ]
        )
    return _table(head, cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _change(new: float | None, old: float | None) -> str:
    return f"{new / old - 1:+.1%}" if new and old else "-"


def _rate(value: float) -> str:
    """8.5e-4, as the literature writes rates."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _pair(interval: tuple[float, float] | None, text) -> str:
    return f"{text(interval[0])} to {text(interval[1])}" if interval else "-"
