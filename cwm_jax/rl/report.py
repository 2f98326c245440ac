"""What a reinforcement-learning run shows of itself: lines, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config import Recipe
from cwm_jax.rl.evaluation import Evaluation, changes, paired_difference
from cwm_jax.rl.trajectory import Trajectory
from cwm_jax.training.metrics import METRICS_FILE, read_metrics

# Titles and fields of the panels; a field that ends with "_" stands for all that begin with it.
_PANELS = (
    ("held-out accuracy", ("eval_",)),
    ("reward", ("reward_",)),
    ("solve rate", ("solve_rate_",)),
    ("entropy (nats)", ("entropy",)),
    ("clipped tokens", ("clip_low_fraction", "clip_high_fraction")),
    ("action tokens of an episode", ("action_tokens",)),
    ("staleness (steps)", ("staleness", "staleness_max")),
    ("trainer against sampler (nats)", ("mismatch", "mismatch_max", "sampler_kl")),
    ("gradient norm", ("grad_norm",)),
)

LEAST_TASKS = 20  # assumed: fewer give no interval that means anything


def format_rl_line(line: dict[str, Any], total_steps: int) -> str:
    """One line for the terminal."""
    parts = [f"step {line['step']:>{len(str(total_steps))}}/{total_steps}"]
    for prefix, label in (("reward_", "reward"), ("eval_", "held-out")):
        for name, value in line.items():
            if name.startswith(prefix) and not name.endswith("_tokens"):
                text = f"{value:.1%}" if prefix == "eval_" else f"{value:+.3f}"
                parts.append(f"{name.removeprefix(prefix)} {label} {text}")
    formats = {
        "entropy": "entropy {:.3f}",
        "grad_norm": "grad {:.3f}",
        "action_tokens": "{:.0f} tokens",
        "groups": "{} groups",
        "zero_advantage_groups": "{} without advantage",
        "mismatch_max": "mismatch {:.1e}",
        "play_time_s": "play {:.2f} s",
        "step_time_s": "of {:.2f} s",
    }
    parts += [
        form.format(line[name]) for name, form in formats.items() if line.get(name) is not None
    ]
    void = line.get("rejected_failed", 0) + line.get("rejected_crashed", 0)
    if void:
        parts.append(f"{void} episodes void: their environments failed")
    if line.get("lost_groups"):
        parts.append(f"{line['lost_groups']} groups lost with their workers so far")
    if line.get("skipped_steps"):
        parts.append(f"skipped {line['skipped_steps']:.0f}")
    return "  ".join(parts)


def plot_rl(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the curves of a run as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), dpi=100, layout="constrained")
    figure.suptitle(path.parent.name)
    for place, (title, fields) in enumerate(_PANELS, 1):
        axes = figure.add_subplot(3, 3, place)
        for name in _names(metrics, fields):
            points = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
            style: dict[str, Any] = {"marker": "o"} if name.startswith("eval_") else {}
            axes.plot(*zip(*points, strict=True), label=name, linewidth=0.8, **style)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def _names(metrics: Sequence[dict[str, Any]], fields: Sequence[str]) -> list[str]:
    found = dict.fromkeys(name for line in metrics for name, v in line.items() if v is not None)
    return [
        name
        for name in found
        if name in fields
        or any(
            field.endswith("_") and name.startswith(field) and not name.endswith("_tokens")
            for field in fields
        )
    ]


def why_nothing(trajectories: Sequence[Trajectory], rejected: Mapping[str, int]) -> str:
    """What keeps a policy from learning from these episodes, and what would help.

    ``rejected``: how many of them, by reason.
    """
    n, solved = len(trajectories), sum(t.passed for t in trajectories)
    reason = max(rejected, key=lambda key: rejected[key], default="")
    if reason and 2 * rejected[reason] > n:
        failures = [t.failure for t in trajectories if t.failure]
        helps = {
            "empty": "their prompts leave no room, raise batch.max_target_length",
            "too_long": "a group fits no batch, raise batch.global_batch_tokens or lower "
            "rl.group_size, in a run of another name",
            "stale": "the players are too far ahead, lower rl.ready_groups",
            "gibberish": "look at rl.filters.gibberish_min_token_id and the policy",
        }
        help_ = helps.get(reason) or f"their environments failed, first: {failures[0]}"
        return f"{rejected[reason]} of {n} episodes are {reason}: {help_}"
    helps = {0: "train the policy further or give easier tasks", n: "give harder tasks"}
    return (
        f"{solved} of {n} episodes solved their tasks, and the returns within each group are "
        f"equal: {helps.get(solved, 'raise rl.group_size, in a run of another name')}"
    )


def describe_change(change: tuple[Evaluation, Evaluation]) -> str:
    """One line: both accuracies, and their difference with its interval."""
    before, after = change
    first = (
        f"{before.accuracy:.1%} of {len(before.solve_rates)} held-out tasks at step {before.step}"
    )
    if after.step == before.step:
        return f"{after.environment}: {first}"
    return (
        f"{after.environment}: {first}, {after.accuracy:.1%} at step {after.step}: "
        f"{_describe_difference(change, '95 % interval ')}"
    )


def _describe_difference(change: tuple[Evaluation, Evaluation], label: str) -> str:
    before, after = change
    if len(before.solve_rates.keys() & after.solve_rates.keys()) < LEAST_TASKS:
        return f"{after.accuracy - before.accuracy:+.1%} (too few tasks for an interval)"
    difference = paired_difference(before, after)
    if difference.low == difference.high:  # no spread to take an interval from
        return f"{difference.mean:+.1%} (the same in every task: no interval)"
    return f"{difference.mean:+.1%} ({label}{difference.low:+.1%} to {difference.high:+.1%})"


def describe_phases(recipe: Recipe) -> str:
    """A table of what each phase changed: held-out losses on its own data, accuracies by reward."""
    rows = [("phase", "measured", "before", "after", "change")]
    for phase in recipe.phases:
        folder = Path(phase.base_output_directory) / phase.run_name
        if phase.rl is None:
            lines = read_metrics(folder / METRICS_FILE)
            losses = [m["heldout_loss"] for m in lines if m.get("heldout_loss") is not None]
            values = (f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{losses[-1] - losses[0]:+.4f}")
            rows.append((phase.run_name, "held-out loss, nats", *values))
            continue
        for before, after in changes(folder):
            interval = _describe_difference((before, after), "")
            values = (f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", interval)
            rows.append((phase.run_name, f"{after.environment}, held-out accuracy", *values))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
