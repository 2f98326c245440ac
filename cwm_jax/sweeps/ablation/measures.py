"""What is read from the folder of a finished run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A number of a run.

    Attributes:
        value: of the whole run.
        items: what it is the mean of, by name, where the run says it; the same names in two runs
            are the same tasks.
    """

    value: float
    items: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """What the arms of an ablation are compared by.

    Attributes:
        name: in tables.
        read: of a finished run's folder (of a recipe: its last phase's); None where that run does
            not have it.
        percent: shown in per cent.
        lower_is_better: as of a loss.
    """

    name: str
    read: Callable[[Path], Reading | None]
    percent: bool = False
    lower_is_better: bool = False

    def text(self, value: float, *, sign: bool = False) -> str:
        """A value, or with ``sign`` a difference, for people."""
        shown = 100 * value if self.percent else value
        plus = "+" if sign else ""
        return f"{shown:{plus}.1f}" if self.percent else f"{shown:{plus}.4f}"


def heldout_loss() -> Measure:
    """Of the last evaluation of ``metrics.jsonl``, in nats per token; not there if not finite."""

    def read(folder: Path) -> Reading | None:
        from cwm_jax.training.metrics import METRICS_FILE, read_metrics  # imports jax

        lines = read_metrics(folder / METRICS_FILE)
        losses = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
        return Reading(value=losses[-1]) if losses and losses[-1] is not None else None

    return Measure(name="held-out loss", read=read, lower_is_better=True)


def predicted_programs(share: str, *others: str, name: str | None = None) -> Measure:
    """A share of the programs of ``traces.json``: ``exact``, ``output_direct`` and the like.

    Args:
        share: a key of ``programs.overall``.
        others: taken in this order where the run was not asked for the first.
        name: in tables; None is made of the shares.
    """

    def read(folder: Path) -> Reading | None:
        found = _traces(folder)
        if found is None:
            return None
        overall = found["programs"]["overall"]
        for key in (share, *others):
            if overall.get(key) is not None:
                rights = {n: o[key] for n, o in found.get("outcomes", {}).items() if key in o}
                items = {n: float(right) for n, right in rights.items()}
                return Reading(value=overall[key], items=items or None)
        return None

    words = " or ".join(key.replace("_", " ") for key in (share, *others))
    return Measure(name=name or words, read=read, percent=True)


def predicted_frames(
    metric: str = "exact", *, mode: str = "teacher_forced", name: str | None = None
) -> Measure:
    """The mean of a metric over the frames of ``traces.json``, see ``evals.traces.metrics``."""

    def read(folder: Path) -> Reading | None:
        overall = (_traces(folder) or {}).get(mode, {}).get("overall", {})
        return Reading(value=overall[metric]) if metric in overall else None

    words = f"frames {metric}, {mode.replace('_', ' ')}"
    return Measure(name=name or words, read=read, percent=True)


def solve_rate(environment: str, *, name: str | None = None) -> Measure:
    """Of the held-out tasks of an RL run's last evaluation, ``evaluation.jsonl``."""

    def read(folder: Path) -> Reading | None:
        from cwm_jax.rl.evaluation import read_evaluations  # imports jax

        found = [e for e in read_evaluations(folder) if e.environment == environment]
        if not found:
            return None
        return Reading(value=found[-1].accuracy, items=dict(found[-1].solve_rates))

    return Measure(name=name or f"{environment} solved", read=read, percent=True)


def _traces(folder: Path) -> dict[str, Any] | None:
    path = folder / "traces.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
