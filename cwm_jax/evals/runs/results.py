"""A run's records as numbers: scores with intervals, break-downs, tokens, failures."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.contamination import Contamination, contamination_from_json
from cwm_jax.evals.runs.metrics import (
    Estimate,
    Metric,
    Sample,
    interval,
    parse,
    samples_of,
    values_of,
    weights_of,
)
from cwm_jax.evals.runs.records import Record, read_records, read_run

CONTAMINATION_FILE = "contamination.json"
_MAX_VALUES = 30  # of a label that is broken down
_MAX_CHARACTERS = 300  # of a reason


@dataclasses.dataclass(frozen=True)
class Results:
    """A run as it lies in its folder.

    Attributes:
        run: what ``run.json`` says.
        records: sorted by problem and sample.
        contamination: of the set, where it was looked for.
    """

    run: Mapping[str, Any]
    records: Sequence[Record]
    contamination: Contamination | None
    _values: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def problems(self) -> dict[str, list[Sample]]:
        """The samples of each problem that has some that are not void."""
        return samples_of(self.records)

    @functools.cached_property
    def metrics(self) -> list[Metric]:
        """The set's, those that have enough samples; then the mean of each score."""
        samples = self.run["settings"]["samples"]
        scores = sorted({name for record in self.records for name in record.scores})
        names = [*self.run["metrics"], "mean", *(f"{name}:mean" for name in scores)]
        found = [parse(name) for name in dict.fromkeys(names)]
        return [metric for metric in found if metric.k <= samples]

    @property
    def num_samples(self) -> int:
        """That a whole run has."""
        return self.run["num_problems"] * self.run["settings"]["samples"]

    def estimate(self, metric: Metric, names: Iterable[str] | None = None) -> Estimate:
        """Of all problems, or of those; what a problem comes to is computed once."""
        if metric.name not in self._values:
            self._values[metric.name] = values_of(metric, self.problems)
        values = self._values[metric.name]
        chosen = [n for n in (self.problems if names is None else names) if n in values]
        weights = weights_of(metric, self.problems, chosen)
        return interval([values[name] for name in chosen], weights=weights)

    def with_status(self, status: str) -> list[Record]:
        return [record for record in self.records if record.status == status]


def read_results(folder: Path) -> Results:
    """Raises RecordsError for a folder that is no run's."""
    run = read_run(folder)
    records = sorted(read_records(folder).values(), key=lambda r: (_natural(r.problem), r.sample))
    path = folder / CONTAMINATION_FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return Results(run, records, contamination_from_json(found) if found else None)


def to_json(results: Results) -> dict[str, Any]:
    """Every number of the report."""
    return {
        "run": dict(results.run),
        "num_records": len(results.records),
        "num_samples": results.num_samples,
        "scores": _scores(results),
        "by_label": {
            label: {value: _scores(results, names) for value, names in groups.items()}
            for label, groups in by_label(results).items()
        },
        "tokens": token_counts(results.records),
        "failures": dict(failures_by_reason(results.records)),
        "void": [[r.problem, r.sample, r.reason] for r in results.with_status("void")],
        "too_long": [[r.problem, r.sample] for r in results.with_status("too_long")],
        "contamination": results.contamination and results.contamination.to_json(),
        "scores_without_contaminated": (
            _scores(results, without_contaminated(results)) if results.contamination else None
        ),
    }


def _scores(results: Results, names: Sequence[str] | None = None) -> dict[str, Any]:
    return {m.name: dataclasses.asdict(results.estimate(m, names)) for m in results.metrics}


def by_label(results: Results) -> dict[str, dict[str, list[str]]]:
    """Label -> its value -> problems; labels with one or very many values say nothing."""
    labels = {record.problem: record.labels for record in results.records}
    found: dict[str, dict[str, list[str]]] = {}
    for name in results.problems:
        for label, value in labels[name].items():
            found.setdefault(label, {}).setdefault(value, []).append(name)
    return {
        label: {value: groups[value] for value in sorted(groups, key=_natural)}
        for label, groups in found.items()
        if 1 < len(groups) <= _MAX_VALUES
    }


def without_contaminated(results: Results) -> list[str]:
    """The problems that were not found in training data."""
    assert results.contamination is not None
    found = {item.problem for item in results.contamination.found}
    return [name for name in results.problems if name not in found]


def token_counts(records: Sequence[Record]) -> dict[str, Any]:
    """Of graded samples with answers, where they are known; ``total`` is of all answers."""
    graded = [record for record in records if record.status == "graded" and record.turns]
    counted = {
        "answered": [r.num_tokens for r in graded],
        "answered, right": [r.num_tokens for r in graded if r.passed],
        "answered, wrong": [r.num_tokens for r in graded if not r.passed],
        "read": [r.num_prompt_tokens for r in graded],
    }
    known = {name: sorted(n for n in counts if n is not None) for name, counts in counted.items()}
    described: dict[str, Any] = {name: _described(n) for name, n in known.items() if n}
    return {**described, "total": sum(known["answered"])}


def _described(ordered: Sequence[int]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "90th percentile": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "most": ordered[-1],
    }


def failures_by_reason(records: Sequence[Record]) -> list[tuple[str, int]]:
    """By what is said before the first colon: what follows it is the item's own."""
    failed = (r for r in records if not r.passed and not r.is_void)
    reasons = (one_line(r.reason).partition(":")[0][:100] or "no reason given" for r in failed)
    return sorted(collections.Counter(reasons).items(), key=lambda pair: (-pair[1], pair[0]))


def one_line(text: str) -> str:
    """For a cell of a table."""
    return " ".join(text.split())[:_MAX_CHARACTERS]


def _natural(name: str) -> tuple:
    """``p10`` after ``p9``."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)
