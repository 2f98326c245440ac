"""From runs of patches and tests to a choice for each problem, and a report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.swe.rows import load_tasks
from cwm_jax.evals.test_time.cells import Cells
from cwm_jax.evals.test_time.estimates import Curves, curves, usual_ks
from cwm_jax.evals.test_time.execution import Bench, Filled, existing_of, fill
from cwm_jax.evals.test_time.report import markdown, plot
from cwm_jax.evals.test_time.samples import Samples, read_samples
from cwm_jax.evals.test_time.selection import Choice, select
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.profiles import PROFILES, SWEProfile
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.rl.envs.swe.suite import FORMATS
from cwm_jax.storage import write_json, write_whole


def scale(args: argparse.Namespace) -> str:
    """The report of a command line as `command.add_parser` reads it; all is on the disk then.

    Raises:
        ValueError: arguments that do not belong together, files that cannot be read.
        EnvironmentFailure: some runs failed; what is done is kept.
    """
    _check_numbers(args)
    samples = read_samples(args.runs, args.tests)
    benches = _benches(args, samples)
    ks = _ks(args.ks, max(len(one.patches) for one in samples.values()))
    args.out.mkdir(parents=True, exist_ok=True)
    filled = _filled(benches, samples, args.out / "cells.jsonl", args.workers)
    all_tables = {name: one.table for name, one in filled.items()}
    choices = {name: select(t, num_tests=args.num_tests) for name, t in all_tables.items()}
    found = curves(
        all_tables,
        ks or usual_ks(all_tables),
        num_tests=args.num_tests,
        num_choices=args.choices,
        seed=args.seed,
    )
    return _write(args, samples, filled, choices, found)


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("num_tests", 0), ("choices", 1), ("workers", 1), ("count", 1)):
        if getattr(args, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; expected {least} or more"
            )


def _benches(args: argparse.Namespace, samples: Mapping[str, Samples]) -> dict[str, Bench]:
    if args.data is None:
        tasks: Sequence[Task] = shipped_tasks(args.seed, args.count, unsafe=args.unsafe)
    else:
        tasks, _ = load_tasks(args.data)
    by_name = {task.name: task for task in tasks}
    unknown = sorted(samples.keys() - by_name.keys())
    if unknown:
        raise ValueError(
            f"{len(unknown)} problems of the runs, {unknown[0]!r} first, are none of the "
            f"{len(tasks)} tasks of {args.data or 'the shipped set'}; expected the runs' own: name "
            "their file by --data, or their --seed and --count"
        )
    profile = PROFILES[args.mode]
    given = _existing(args.existing)
    return {name: _bench(by_name[name], profile, given, args.unsafe) for name in samples}


def _bench(task: Task, profile: SWEProfile, given: Mapping[str, Any], unsafe: bool) -> Bench:
    return Bench(task=task, profile=profile, existing=existing_of(task, given), unsafe=unsafe)


def _existing(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    values = found.values() if isinstance(found, dict) else [found]
    if not all(value is None or _is_existing(value) for value in values):
        raise ValueError(
            f"{path}: expected an object of objects with command, canary and format "
            f"({', '.join(FORMATS)}), or null, by the problem's name, its repository or *: mend it"
        )
    return found


def _is_existing(value: Any) -> bool:
    wanted = {"command", "format", "canary"}
    return isinstance(value, dict) and {*value} == wanted and value["format"] in FORMATS


def _ks(text: str | None, most: int) -> list[int]:
    if text is None:
        return []
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
        raise ValueError(f"--ks is {text!r}; expected numbers from 1 to {most}, as 1,2,{most}")
    return sorted({int(part) for part in parts})


def _filled(
    benches: Mapping[str, Bench], samples: Mapping[str, Samples], path: Path, num_workers: int
) -> dict[str, Filled]:
    """A problem that fails does not keep the others from being run."""
    found: dict[str, Filled] = {}
    failures: list[str] = []
    with Cells(path) as cells:
        for number, (name, bench) in enumerate(benches.items(), 1):
            try:
                found[name] = fill(bench, samples[name], cells, num_workers=num_workers)
                said = f"{len(found[name].tests)} of {found[name].num_tests} tests reproduce it"
            except EnvironmentFailure as error:
                failures.append(f"{name}: {error}")
                said = "failed"
            print(f"{number} of {len(benches)}: {name}: {said}", file=sys.stderr)
    if failures:
        raise EnvironmentFailure(f"{len(failures)} problems could not be run, first {failures[0]}")
    return found


def _write(
    args: argparse.Namespace,
    samples: Mapping[str, Samples],
    filled: Mapping[str, Filled],
    choices: Mapping[str, Choice],
    found: Curves,
) -> str:
    """The report, after all is on the disk."""
    num_patches = sum(len(one.patches) for one in samples.values())
    num_tests = sum(one.num_tests for one in filled.values())
    about = (
        f"{num_patches} patches and {num_tests} tests of {len(filled)} problems, by runs "
        f"{', '.join(run.name for run in [*args.runs, *args.tests])}. At most {args.num_tests} "
        "generated tests of each problem are kept. Shares are percent of problems, with 95 % "
        "bootstrap intervals over problems. See docs/test-time-scaling.md."
    )
    report = markdown(filled, choices, found, about=about)
    lines = [
        json.dumps(_chosen(name, samples[name], filled[name], choices[name])) for name in filled
    ]
    write_whole(args.out / "chosen.jsonl", "".join(f"{line}\n" for line in lines).encode())
    numbers = {
        rule: {str(k): dataclasses.asdict(estimate) for k, estimate in by_k.items()}
        for rule, by_k in found.items()
    }
    write_json(args.out / "curves.json", numbers)
    plot(found, args.out / "curves.png")
    write_whole(args.out / "report.md", report.encode())
    return report


def _chosen(name: str, samples: Samples, one: Filled, choice: Choice) -> dict[str, Any]:
    taken = choice.candidate
    return {
        "problem": name,
        "sample": taken and taken.sample,
        "patch": None if taken is None else samples.patches[taken.sample].text,
        "passed": choice.passed,
        "num_passed": choice.num_passed,
        "num_existing": one.num_existing,
        "votes": choice.votes,
        "tests": [one.tests[place] for place in choice.tests],
    }
