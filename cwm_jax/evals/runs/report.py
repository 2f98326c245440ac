"""A run's records as a report: Markdown and JSON, a picture, and two runs compared."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.runs.metrics import (
    Estimate,
    Metric,
    Sample,
    difference,
    parse,
    values_of,
)
from cwm_jax.evals.runs.records import Record, RecordsError
from cwm_jax.evals.runs.results import (
    Results,
    by_label,
    failures_by_reason,
    one_line,
    read_results,
    to_json,
    token_counts,
    without_contaminated,
)

REPORT = "report"  # .md, .json, .png
_MAX_LISTED = 50  # void or contaminated items by name
_NUM_EXAMPLES = 2  # of right and wrong answers each
_MAX_CHARACTERS = 1500  # of an example
_MAX_PUBLISHED = 8  # in the picture


def write_report(folder: Path) -> tuple[Path, Path, Path]:
    """Writes ``report.md``, ``.json`` and ``.png`` of the run in a folder; returns their paths."""
    results = read_results(folder)
    paths = tuple(folder / f"{REPORT}.{suffix}" for suffix in ("md", "json", "png"))
    beside = [path.with_name(f".partial-{path.name}") for path in paths]
    beside[0].write_text(markdown(results), encoding="utf-8", errors="backslashreplace")
    beside[1].write_text(json.dumps(to_json(results), indent=1) + "\n", encoding="utf-8")
    _plot(results, beside[2])
    for partial, path in zip(beside, paths, strict=True):
        os.replace(partial, path)
    return paths[0], paths[1], paths[2]


def markdown(results: Results) -> str:
    """The report for people."""
    run = results.run
    parts = [
        f"# {run['set']}: {run['model']['name']}",
        *_incomplete(results),
        _score_table(results),
        _published(run["published"]),
        _settings(run),
        *_break_downs(results),
        _token_table(results.records),
        _failure_table(results),
        *_contaminated(results),
        *_examples(results.records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(folder: Path) -> str:
    """One line: the first metric of the run in a folder."""
    results = read_results(folder)
    metric = results.metrics[0]
    score, interval, count = _with_interval(metric, results.estimate(metric))
    return f"{results.run['set']}: {metric.name} {score} ({interval}) on {count:,} problems"


def compare(before: Path, after: Path) -> str:
    """A table of two runs on the problems of both, with paired intervals, in Markdown.

    Raises:
        RecordsError: they are of different sets, modes or files.
    """
    old, new = read_results(before), read_results(after)
    for name in ("set", "file"):
        if old.run[name] != new.run[name]:
            raise RecordsError(
                f"{before} and {after} differ in their {name}: {old.run[name]} and "
                f"{new.run[name]}; expected two runs on the same problems"
            )
    first, second = old.problems, new.problems
    both = [name for name in first if name in second]
    first, second = ({n: problems[n] for n in both} for problems in (first, second))
    rows = []
    for metric in (m for m in old.metrics if m.name in {m.name for m in new.metrics}):
        change = difference(metric, first, second)
        means = [results.estimate(metric, both).mean for results in (old, new)]
        signed = _signed(metric, change)
        rows.append([metric.name, *(_number(metric, mean) for mean in means), *signed])
    names = [_run_name(results, folder) for results, folder in ((old, before), (new, after))]
    return "\n\n".join(
        [
            f"# {old.run['set']}: {names[0]} and {names[1]}",
            f"{len(both):,} problems are in both. Intervals (95 %) are of the difference, paired "
            "by problem, from bootstrap over problems.",
            _table(["metric", names[0], names[1], "difference", "95 % interval"], rows),
            _changes(first, second),
            *_other_settings(old.run, new.run),
        ]
    )


# ---------------------------------------------------------------- parts


def _incomplete(results: Results) -> Iterator[str]:
    count, total = len(results.records), results.num_samples
    if count < total:
        yield f"**Not finished: {count:,} of {total:,} samples.** The same command goes on."
    if void := results.with_status("void"):
        yield (
            f"**{len(void):,} samples are void**: their environment failed in every try. They "
            "count as nothing; the same command tries them again."
        )


def _score_table(results: Results) -> str:
    rows = [
        [metric.name, *_with_interval(metric, results.estimate(metric))]
        for metric in results.metrics
    ]
    note = (
        "Shares are in per cent; a score NAME:... is in its own unit. Intervals are of the mean "
        "over problems (bootstrap, 2,000 resamples of problems): what other problems of the kind "
        "would give, not other samples alone."
    )
    return (
        f"## Scores\n\n{_table(['metric', 'score', '95 % interval', 'problems'], rows)}\n\n{note}"
        f"\n\n![scores]({REPORT}.png)"
    )


def _published(published: Mapping[str, float]) -> str:
    if not published:
        return ""
    rows = [[model, f"{score:.1f}"] for model, score in published.items()]
    return (
        f"## Published\n\n{_table(['model', 'score'], rows)}\n\nAs their authors give them: "
        "prompts, sampling, token limits, graders and sometimes the problems themselves are "
        "others, and few come with intervals."
    )


def _settings(run: Mapping[str, Any]) -> str:
    values = {
        "file": run["file"] and f"{run['file']['name']}, sha256 {run['file']['sha256']}",
        "problems": run["num_problems"],
        **run["settings"],
        **{f"model {name}": value for name, value in run["model"].items()},
        "server": run.get("url"),
        **{f"version of {name}": value for name, value in run["versions"].items()},
        "started": run["started"],
    }
    rows = [[name, _cell(value)] for name, value in values.items() if value not in (None, {}, [])]
    notes = "".join(f"\n\n{note}." for note in run.get("notes", ()))
    about = f"\n\n{run['about']}" if run["about"] else ""
    return f"## Settings\n\n{_table(['setting', 'value'], rows)}{notes}{about}"


def _break_downs(results: Results) -> Iterator[str]:
    metrics = [m for m in results.metrics if m.name in results.run["metrics"]]
    head = [text for m in metrics for text in (m.name, "95 % interval", "problems")]
    for label, groups in by_label(results).items():
        rows = [
            [value, *(cell for m in metrics for cell in _with_interval(m, results.estimate(m, n)))]
            for value, n in groups.items()
        ]
        yield f"## By {label}\n\n" + _table([label, *head], rows)


def _token_table(records: Sequence[Record]) -> str:
    names = ("mean", "median", "90th percentile", "most")
    rows = [
        [name, *(f"{values[n]:,.0f}" for n in names)]
        for name, values in token_counts(records).items()
        if isinstance(values, dict)
    ]
    cut = sum(turn.finish_reason == "length" for record in records for turn in record.turns)
    turns = sum(len(record.turns) for record in records)
    if records and not turns:  # nothing was to be written
        return ""
    known = _table(["tokens of a sample", *names], rows) if rows else "The server does not tell."
    return f"## Tokens\n\n{known}\n\n{cut:,} of {turns:,} answers were cut at their limit."


def _failure_table(results: Results) -> str:
    failures, too_long = failures_by_reason(results.records), results.with_status("too_long")
    parts = []
    if failures:
        parts.append(
            _table(["failures by reason", "samples"], [[_cell(r), n] for r, n in failures])
        )
    if too_long:
        parts.append(
            f"{len(too_long):,} samples had a prompt that leaves the model no room to answer. They "
            "count as failed; a model that reads more may do otherwise."
        )
    void = results.with_status("void")
    for record in void[:_MAX_LISTED]:
        parts.append(f"Void: {record.problem}, sample {record.sample}: {one_line(record.reason)}")
    if len(void) > _MAX_LISTED:
        parts.append(f"... and {len(void) - _MAX_LISTED:,} more")
    return "## Failures\n\n" + "\n\n".join(parts) if parts else ""


def _contaminated(results: Results) -> Iterator[str]:
    check = results.contamination
    if check is None:
        return
    metric = results.metrics[0]
    groups = {
        "all problems": [*results.problems],
        "without those found": without_contaminated(results),
        "those found alone": [found.problem for found in check.found],
    }
    rows = [
        [name, *_with_interval(metric, results.estimate(metric, group))]
        for name, group in groups.items()
    ]
    found = [
        [_cell(f.problem), f"{100 * f.share:.0f} %", f"{f.jaccard:.2f}", _cell(f.document)]
        for f in check.found[:_MAX_LISTED]
    ]
    more = len(check.found) - _MAX_LISTED
    yield (
        f"## Contamination\n\n{len(check.found):,} of {check.num_problems:,} problems stand in the "
        f"training data ({', '.join(check.paths)}; {check.num_documents:,} documents): 13 words "
        "in a row, or a near-duplicate (MinHash of 5-word shingles, Jaccard 0.8). "
        f"{check.num_short:,} of fewer than 8 words were not looked for.\n\n"
        f"{_table(['', metric.name, '95 % interval', 'problems'], rows)}"
    )
    if found:
        head = ["problem", "of its 13-grams", "near-duplicate", "first document"]
        yield _table(head, found) + (f"\n\n... and {more:,} more" if more > 0 else "")


def _examples(records: Sequence[Record]) -> Iterator[str]:
    for passed, title in ((True, "right"), (False, "wrong")):
        chosen = [r for r in records if r.status == "graded" and r.passed == passed and r.turns]
        for record in chosen[:_NUM_EXAMPLES]:
            yield f"## An answer that is {title}: {record.problem}, sample {record.sample}"
            if record.turns[-1].reasoning:
                yield "Reasoning:\n\n" + _fenced(record.turns[-1].reasoning)
            yield _fenced(record.turns[-1].text)
            read = f"read as `{one_line(record.answer)}`" if record.answer is not None else ""
            said = [part for part in (read, one_line(record.reason)) if part]
            if said:
                yield "; ".join(said)


def _changes(first: Mapping[str, list[Sample]], second: Mapping[str, list[Sample]]) -> str:
    mean = parse("mean")
    old, new = values_of(mean, first), values_of(mean, second)
    better = sum(new[name] > old[name] for name in old)
    worse = sum(new[name] < old[name] for name in old)
    return (
        f"{better:,} problems are solved more often by the second, {worse:,} more often by the "
        f"first, {len(old) - better - worse:,} as often."
    )


def _other_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before = {**old["settings"], **{f"model {n}": v for n, v in old["model"].items()}}
    after = {**new["settings"], **{f"model {n}": v for n, v in new["model"].items()}}
    rows = [
        [name, _cell(before.get(name)), _cell(after.get(name))]
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    if rows:
        yield "They differ in:"
        yield _table(["setting", "first", "second"], rows)


# ---------------------------------------------------------------- text


def _with_interval(metric: Metric, found: Estimate) -> list[Any]:
    low, high = _number(metric, found.low), _number(metric, found.high)
    return [_number(metric, found.mean), f"{low} to {high}", found.num_problems]


def _number(metric: Metric, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if metric.score is None else f"{value:.4g}"


def _signed(metric: Metric, found: Estimate) -> list[str]:
    texts = []
    for value in (found.mean, found.low, found.high):
        text = _number(metric, value)
        texts.append(text if value is None or text.startswith("-") else f"+{text}")
    return [texts[0], f"{texts[1]} to {texts[2]}"]


def _run_name(results: Results, folder: Path) -> str:
    return f"{results.run['model']['name']} ({folder.name})"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return one_line(text).replace("|", "\\|")


def _fenced(text: str) -> str:
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


# ---------------------------------------------------------------- picture


def _plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = next(iter(by_label(results).items()), None)
    figure, axes = pyplot.subplots(1, 3 if groups else 2, figsize=(5.5 * (3 if groups else 2), 4))
    shares = [m for m in results.metrics if m.score is None]
    published = dict([*results.run["published"].items()][:_MAX_PUBLISHED])
    _bars(axes[0], {m.name: results.estimate(m) for m in shares}, published)
    axes[0].set(title=f"{results.run['set']}", ylabel="per cent")
    if groups:
        label, found = groups
        _bars(axes[1], {v: results.estimate(shares[0], names) for v, names in found.items()})
        axes[1].set(title=f"{shares[0].name} by {label}")
    _histogram(axes[-1], results.records)
    figure.suptitle(results.run["model"]["name"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _bars(
    axis: Any, estimates: Mapping[str, Estimate], published: Mapping[str, float] | None = None
) -> None:
    """Bars with their intervals; published scores beside them in grey."""
    known = {name: e for name, e in estimates.items() if e.mean is not None}
    means = [100 * (e.mean or 0) for e in known.values()]
    below = [m - 100 * (e.low or 0) for m, e in zip(means, known.values(), strict=True)]
    above = [100 * (e.high or 0) - m for m, e in zip(means, known.values(), strict=True)]
    errors = [[max(0.0, x) for x in side] for side in (below, above)]
    axis.bar(range(len(means)), means, yerr=errors if means else None, capsize=4)
    others = published or {}
    places = range(len(means), len(means) + len(others))
    axis.bar(places, list(others.values()), color="lightgrey")
    names = [*known, *(f"{model}, published" for model in others)]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    axis.set(ylim=(0, 105))


def _histogram(axis: Any, records: Sequence[Record]) -> None:
    counts = [
        [r.num_tokens for r in records if r.passed == passed and r.num_tokens and not r.is_void]
        for passed in (True, False)
    ]
    if any(counts):
        axis.hist(counts, bins=20, stacked=True, label=["right", "wrong"])
        axis.legend(fontsize=7)
    axis.set(title="tokens of a sample", xlabel="tokens", ylabel="samples")
