"""Results of a trace evaluation for people: a table, JSON, a picture, two traces side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from cwm_jax.evals.trace_metrics import METRICS
from cwm_jax.evals.traces import PredictedTrace, TraceEvaluation
from cwm_jax.tokenizer import END_OF_TEXT, FRAME_SEP
from cwm_jax.trace.format import parse_trace, render_each
from cwm_jax.trace.table import format_table

_TITLES = {"teacher_forced": "teacher-forced frames", "free_running": "free-running frames"}


def format_evaluation(evaluation: TraceEvaluation) -> str:
    """Tables of shares in per cent: frames by group, whole traces, outputs."""
    result, lines = evaluation.to_json(), []
    for mode, title in _TITLES.items():
        if mode in result:
            names = [name.replace("_", "-") for name in METRICS]
            lines.append(f"{title:<24}{'frames':>8}" + "".join(f"{name:>12}" for name in names))
            lines += [_row(group, means) for group, means in result[mode].items()]
    if "traces_free_running" in result:
        whole = result["traces_free_running"]
        lines.append(f"{'free-running traces':<24}{result['traces']:>8}")
        lines += [f"  {name:<22}{100 * whole[name]:>8.1f}" for name in ("valid_format", "exact")]
    accuracies = result["output_pass@1"]
    if accuracies:
        lines.append(f"{'output pass@1':<24}{result['traces']:>8}")
        lines += [f"  {way:<22}{100 * share:>8.1f}" for way, share in accuracies.items()]
    return "\n".join(lines)


def side_by_side(prediction: PredictedTrace, *, width: int = 150) -> str:
    """A predicted trace under the true one, with the place where it first differs."""
    episode = prediction.episode
    true = parse_trace(episode.frames).frames
    entry = next(render_each(true[:1]))
    text = prediction.text.removesuffix(END_OF_TEXT)
    closed = text[: text.rfind(FRAME_SEP) + len(FRAME_SEP)] if FRAME_SEP in text else ""
    predicted = parse_trace(entry + closed).frames
    if prediction.divergence is None:
        verdict = "every frame as CPython's"
    else:
        verdict = f"first different frame: {prediction.divergence + 1}"
    return "\n".join(
        [
            f"{episode.name}, never trained on:\n{episode.context.strip()}",
            f"\ntrue trace\n{format_table(true, width=width)}",
            f"\npredicted trace ({verdict})\n{format_table(predicted, width=width)}",
        ]
    )


def write_evaluation(evaluation: TraceEvaluation, folder: Path) -> tuple[Path, Path]:
    """Writes ``traces.json`` and ``traces.png`` below a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "traces.json", folder / "traces.png"
    beside = folder / ".traces.json.partial"
    beside.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, paths[0])
    _plot(evaluation, paths[1])
    return paths


def _row(group: str, means: Mapping[str, float]) -> str:
    shares = "".join(f"{100 * means[name]:>12.1f}" for name in METRICS)
    return f"  {group:<22}{means['frames']:>8.0f}{shares}"


def _plot(evaluation: TraceEvaluation, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = evaluation.to_json()
    modes = [mode for mode in _TITLES if mode in result]
    figure, axes = pyplot.subplots(1, len(modes) + 1, figsize=(6 * (len(modes) + 1), 4))
    for axis, mode in zip(axes, modes, strict=False):
        groups = list(result[mode])
        for number, name in enumerate(METRICS):
            places = [i + number / (len(METRICS) + 1) for i in range(len(groups))]
            values = [result[mode][group][name] for group in groups]
            axis.bar(places, values, width=1 / (len(METRICS) + 1), align="edge", label=name)
        axis.set_xticks([i + 0.4 for i in range(len(groups))], groups, rotation=45, ha="right")
        axis.set(title=_TITLES[mode], ylim=(0, 1))
    axes[0].legend(fontsize=7, loc="lower left")
    _plot_survival(evaluation, axes[-1])
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _plot_survival(evaluation: TraceEvaluation, axis) -> None:
    """Share of the free-running traces of more than n frames that are right up to frame n."""
    predictions = evaluation.predictions or ()
    longest = max((len(p.scores) for p in predictions), default=0)
    shares = []
    for n in range(longest):
        alive = [p for p in predictions if len(p.scores) > n]
        shares.append(sum(p.divergence is None or p.divergence > n for p in alive) / len(alive))
    axis.plot(range(1, longest + 1), shares)
    axis.set(title="free-running: right so far", xlabel="frame", ylim=(0, 1))
