"""Results of a trace evaluation for people: a table, JSON, a picture, two traces side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.traces.evaluation import TraceEvaluation
from cwm_jax.evals.traces.metrics import METRICS
from cwm_jax.evals.traces.predicted import PredictedTrace
from cwm_jax.trace.format import parse_trace, render_each
from cwm_jax.trace.table import format_table

_TITLES = {"teacher_forced": "teacher-forced frames", "free_running": "free-running frames"}
_PROGRAM_METRICS = (
    "valid_format",
    "exact",
    "output_full_trace",
    "output_single_step",
    "output_direct",
)


def format_evaluation(evaluation: TraceEvaluation) -> str:
    """Tables of shares in per cent: frames by group, then whole programs."""
    result, lines = evaluation.to_json(), []
    for mode, title in _TITLES.items():
        if mode in result:
            lines.append(_header(title, "frames", METRICS))
            lines += [_row(g, means, "frames", METRICS) for g, means in result[mode].items()]
    if evaluation.token_accuracy is not None:
        lines.append(f"  tokens right after the true ones {100 * evaluation.token_accuracy:.1f}")
    shown = [name for name in result["programs"]["overall"] if name in _PROGRAM_METRICS]
    lines.append(_header("free-running, outputs", "programs", shown))
    lines += [_row(g, means, "programs", shown) for g, means in result["programs"].items()]
    return "\n".join(lines)


def side_by_side(prediction: PredictedTrace, *, width: int = 150) -> str:
    """A predicted trace under the true one, with the place where it first differs."""
    episode = prediction.episode
    true = parse_trace(episode.frames).frames
    predicted = parse_trace(next(render_each(true[:1])) + prediction.text)
    if prediction.divergence is None:
        verdict = "every frame as CPython's"
    else:
        verdict = f"first different frame: {prediction.divergence + 1}"
    lines = [
        f"{episode.name}\n{episode.context.strip()}",
        f"\ntrue trace\n{format_table(true, width=width)}",
        f"\npredicted trace ({verdict})\n{format_table(predicted.frames, width=width)}",
        *(f"malformed: {problem}" for problem in predicted.problems[:3]),
    ]
    return "\n".join(lines)


def write_evaluation(
    evaluation: TraceEvaluation, folder: Path, *, name: str = "traces", about: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Writes ``NAME.json`` and ``NAME.png`` below a folder; returns their paths.

    Args:
        evaluation: its results.
        folder: made if missing; each file is written beside its place, then renamed.
        name: of the files; another evaluation of the run has another.
        about: what was predicted and what was passed over; it stands first in the JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.json", folder / f"{name}.png"
    beside = [path.with_name(f".partial-{path.name}") for path in paths]
    values = {**about, **evaluation.to_json()}
    beside[0].write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    _plot(evaluation, beside[1])
    for partial, path in zip(beside, paths, strict=True):
        os.replace(partial, path)
    return paths


def _header(title: str, count: str, names: Sequence[str]) -> str:
    shown = (name.removeprefix("output_").replace("_", " ") for name in names)
    return f"{title:<24}{count:>9}{''.join(f'{name:>14}' for name in shown)}"


def _row(group: str, means: Mapping[str, float], count: str, names: Sequence[str]) -> str:
    shares = (f"{100 * means[name]:>14.1f}" if name in means else f"{'-':>14}" for name in names)
    return f"  {group:<22}{means[count]:>9.0f}{''.join(shares)}"


def _plot(evaluation: TraceEvaluation, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = evaluation.to_json()
    modes = [mode for mode in _TITLES if mode in result]
    size = (6 * (len(modes) + 1), 4)
    figure, (axes,) = pyplot.subplots(1, len(modes) + 1, figsize=size, squeeze=False)
    for axis, mode in zip(axes, modes, strict=False):
        groups = list(result[mode])
        for number, name in enumerate(METRICS):
            places = [i + number / (len(METRICS) + 1) for i in range(len(groups))]
            values = [result[mode][group].get(name, 0.0) for group in groups]
            axis.bar(places, values, width=1 / (len(METRICS) + 1), align="edge", label=name)
        axis.set_xticks([i + 0.4 for i in range(len(groups))], groups, rotation=45, ha="right")
        axis.set(title=_TITLES[mode], ylim=(0, 1))
    if modes:
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
