"""What an ablation has found: one table, one picture, JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.storage import write_json, write_whole
from cwm_jax.sweeps.ablation.comparison import (
    CONFIDENCE,
    DRAWS,
    LEAST_SEEDS,
    Comparison,
    Interval,
    Readings,
    compare,
)
from cwm_jax.sweeps.ablation.grid import Ablation, Run
from cwm_jax.sweeps.ablation.measures import Measure, Reading

_PERCENT = f"{100 * CONFIDENCE:.0f} %"
_HEAD = (
    "measure",
    "arm",
    "seeds",
    "mean (lowest to highest)",
    "difference",
    f"{_PERCENT} over seeds",
    f"{_PERCENT} over seeds and items",
    "p",
    "p (Holm)",
    "verdict",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What finished runs say.

    Attributes:
        ablation: what was asked.
        readings: by measure, arm and seed; a measure that an arm does not have is not there.
        comparisons: with the baseline.
        unfinished: names of runs that are left out.
        commands: of all runs, by name.
    """

    ablation: Ablation
    readings: Readings
    comparisons: Sequence[Comparison]
    unfinished: Sequence[str]
    commands: Mapping[str, str]


def make_report(ablation: Ablation, runs: Sequence[Run], commands: Mapping[str, str]) -> Report:
    """Reads the measures of the finished runs and compares them."""
    finished = [run for run in runs if run.is_finished()]
    readings: dict[str, dict[str, dict[int, Reading]]] = {}
    for measure in ablation.measures:
        for run in finished:
            if (reading := measure.read(run.folder)) is not None:
                of_arms = readings.setdefault(measure.name, {})
                of_arms.setdefault(run.arm, {})[run.seed] = reading
    return Report(
        ablation=ablation,
        readings=readings,
        comparisons=compare(readings, ablation.baseline),
        unfinished=[run.name for run in runs if run not in finished],
        commands=commands,
    )


def to_text(report: Report) -> str:
    """For a terminal."""
    rows = [_HEAD, *_rows(report)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([report.ablation.question, *lines, *_notes(report)])


def to_markdown(report: Report) -> str:
    rows = [_HEAD, ("---",) * len(_HEAD), *_rows(report)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = "\n".join(f"* {note}" for note in _notes(report))
    return "\n".join([report.ablation.question, "", *lines, "", notes, ""])


def to_json(report: Report) -> dict[str, Any]:
    """Values of every run, and what they were compared to; without the items."""
    values = {
        measure: {
            arm: {str(seed): reading.value for seed, reading in of_arm.items()}
            for arm, of_arm in of_arms.items()
        }
        for measure, of_arms in report.readings.items()
    }
    return {
        "name": report.ablation.name,
        "question": report.ablation.question,
        "baseline": report.ablation.baseline,
        "values": values,
        "comparisons": [dataclasses.asdict(c) | {"verdict": c.verdict} for c in report.comparisons],
        "notes": _notes(report),
        "unfinished": list(report.unfinished),
        "commands": dict(report.commands),
    }


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes ``report.md``, ``report.json`` and ``report.png``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"report.{kind}" for kind in ("md", "json", "png")]
    write_whole(paths[0], to_markdown(report).encode())
    write_json(paths[1], json.loads(json.dumps(to_json(report))))
    plot(report, paths[2])
    return paths


def plot(report: Report, path: Path) -> None:
    """A column for each measure: runs and means by arm; below, differences with both intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = [m for m in report.ablation.measures if m.name in report.readings]
    arms = list(report.ablation.arms)
    columns = max(1, len(measures))
    size = (1.5 + 3.6 * columns, 2.6 + 0.5 * len(arms))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False, sharey=True)
    for column, measure in enumerate(measures):
        _plot_values(axes[0][column], measure, arms, report.readings[measure.name])
        found = [c for c in report.comparisons if c.measure == measure.name]
        _plot_differences(axes[1][column], measure, arms, found, report.ablation.baseline)
    for row in axes:
        row[0].set_yticks(range(len(arms)), arms)
        row[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.suptitle(report.ablation.name)
    FigureCanvasAgg(figure).print_png(str(path))


def _plot_values(axes, measure: Measure, arms: Sequence[str], readings) -> None:
    scale = 100 if measure.percent else 1
    for place, arm in enumerate(arms):
        values = [scale * reading.value for reading in readings.get(arm, {}).values()]
        if values:
            axes.plot(values, [place] * len(values), "o", alpha=0.5, color="C0")
            axes.plot(statistics.fmean(values), place, "|", markersize=16, color="black")
    axes.set(title=measure.name, xlabel=_unit(measure))
    axes.grid(alpha=0.3)


def _plot_differences(
    axes, measure: Measure, arms: Sequence[str], found: Sequence[Comparison], baseline: str
) -> None:
    scale = 100 if measure.percent else 1
    for c in found:
        place = arms.index(c.arm)
        both = ((c.over_seeds.interval, 0.1, "C0", 1.5), (c.over_items, -0.1, "C1", 3.5))
        for interval, shift, color, width in both:
            if interval is not None:
                ends = [scale * interval.low, scale * interval.high]
                axes.plot(ends, [place + shift] * 2, color=color, linewidth=width)
        axes.plot(scale * c.over_seeds.mean, place, "|", markersize=14, color="black")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(xlabel=f"less {baseline}; {_PERCENT} over seeds (blue), and items (orange)")
    axes.xaxis.label.set_size(7)
    axes.grid(alpha=0.3)


def _rows(report: Report) -> list[tuple[str, ...]]:
    compared = {(c.measure, c.arm): c for c in report.comparisons}
    rows = []
    for measure in report.ablation.measures:
        for arm in report.ablation.arms:
            readings = report.readings.get(measure.name, {}).get(arm)
            if readings:
                values = [reading.value for reading in readings.values()]
                comparison = compared.get((measure.name, arm))
                values_text = _spread(measure, values)
                compared_texts = _compared(measure, comparison)
                rows.append((measure.name, arm, str(len(values)), values_text, *compared_texts))
    return rows


def _spread(measure: Measure, values: Sequence[float]) -> str:
    mean = measure.text(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({measure.text(min(values))} to {measure.text(max(values))})"


def _compared(measure: Measure, c: Comparison | None) -> tuple[str, ...]:
    if c is None:
        return ("-",) * 6
    return (
        measure.text(c.over_seeds.mean, sign=True),
        _interval(measure, c.over_seeds.interval),
        _interval(measure, c.over_items),
        "-" if c.over_seeds.p is None else f"{c.over_seeds.p:.3f}",
        "-" if c.adjusted_p is None else f"{c.adjusted_p:.3f}",
        c.verdict,
    )


def _interval(measure: Measure, interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{measure.text(interval.low, sign=True)} to {measure.text(interval.high, sign=True)}"


def _unit(measure: Measure) -> str:
    unit = "%" if measure.percent else "nats per token" if "loss" in measure.name else ""
    return f"{unit} (lower is better)" if measure.lower_is_better else unit


def _notes(report: Report) -> list[str]:
    tested = sum(c.adjusted_p is not None for c in report.comparisons)
    items = sorted({c.num_items for c in report.comparisons if c.num_items})
    percent = [m.name for m in report.ablation.measures if m.percent]
    lower = [m.name for m in report.ablation.measures if m.lower_is_better]
    notes = [
        f"Differences: the arm less {report.ablation.baseline}, of the same seed. Over seeds: "
        "Student's t of the paired differences.",
        f"p (Holm) is adjusted for the {tested} comparisons of this table, p and the intervals "
        f'are not; "differs": p (Holm) below {1 - CONFIDENCE:.2f} and {LEAST_SEEDS} seeds or '
        "more.",
    ]
    if items:
        counts = f"{items[0]:,}" if len(items) == 1 else f"{items[0]:,} to {items[-1]:,}"
        notes.append(
            f"Over seeds and items: bootstrap, {DRAWS:,} draws, {counts} items that all runs "
            "answer; of few seeds it is too narrow as far as seeds go, and of one it is of items "
            "alone."
        )
    if percent:
        notes.append(f"In per cent: {', '.join(percent)}.")
    if lower:
        notes.append(f"Lower is better: {', '.join(lower)}.")
    if report.unfinished:
        notes.append(f"Not finished, left out: {', '.join(report.unfinished)}.")
    return notes
