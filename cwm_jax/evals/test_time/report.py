"""What test-time scaling came to, for people: Markdown and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cwm_jax.evals.runs.metrics import Estimate
from cwm_jax.evals.test_time.estimates import RULES, Curves
from cwm_jax.evals.test_time.execution import Filled
from cwm_jax.evals.test_time.selection import Choice

_MEANING = {
    "random": "any patch",
    "majority": "the most frequent patch",
    "best": "chosen by tests",
    "pass": "an oracle chooses",
}
# Of SWE-bench Verified. Source: cwm_report section 10.
_PUBLISHED = "CWM on SWE-bench Verified: one try 53.9, majority 58.4, best@16 65.8, pass@40 80.4"
_LEAST_PROBLEMS = 20  # assumed: fewer give no interval that means anything


def markdown(
    filled: Mapping[str, Filled], choices: Mapping[str, Choice], found: Curves, *, about: str
) -> str:
    """The report."""
    parts = ["# Test-time scaling", about, "## k patches", _curve_table(found)]
    if len(filled) < _LEAST_PROBLEMS:
        parts.append(f"The intervals are of {len(filled)} problems: they mean little.")
    parts += [f"Published: {_PUBLISHED}.", "## All patches", _choice_table(filled, choices)]
    notes = [f"* {name}: {note}" for name, one in filled.items() for note in one.notes]
    if notes:
        parts.append("\n".join(["## Notes", "", *notes]))
    return "\n\n".join(parts) + "\n"


def plot(found: Curves, path: Path) -> None:
    """Writes the curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for rule in RULES:
        known = [
            (k, e.mean, e.low, e.high)
            for k, e in found[rule].items()
            if e.mean is not None and e.low is not None and e.high is not None
        ]
        ks, means, lows, highs = ([row[n] for row in known] for n in range(4))
        axes.plot(ks, [100 * mean for mean in means], marker="o", label=f"{rule}: {_MEANING[rule]}")
        low, high = ([100 * value for value in values] for values in (lows, highs))
        axes.fill_between(ks, low, high, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set(xlabel="patches of each problem", ylabel="problems solved (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def _curve_table(found: Curves) -> str:
    head = ["k", "problems", *(f"{rule} ({_MEANING[rule]})" for rule in RULES)]
    rows = [
        [str(k), str(found["best"][k].num_problems), *(_share(found[rule][k]) for rule in RULES)]
        for k in found["best"]
    ]
    return _table(head, rows)


def _choice_table(filled: Mapping[str, Filled], choices: Mapping[str, Choice]) -> str:
    head = ["problem", "right patches", "tests kept", "existing", "chosen", "passes", "votes", ""]
    rows = []
    for name, one in filled.items():
        candidates, choice = one.table.candidates, choices[name]
        right = sum(candidate.passed for candidate in candidates)
        chosen = choice.candidate
        rows.append(
            [
                name,
                f"{right} of {len(candidates)}",
                f"{len(one.tests)} of {one.num_tests}",
                str(one.num_existing),
                "none" if chosen is None else f"sample {chosen.sample}",
                f"{choice.num_passed} of {len(choice.tests) + one.num_existing}",
                str(choice.votes),
                "right" if choice.passed else "wrong",
            ]
        )
    return _table(head, rows)


def _share(estimate: Estimate) -> str:
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * estimate.mean:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
