"""``python -m cwm_jax tts``: choose one of many patches of each problem by tests; measure it."""

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
from cwm_jax.evals.test_time.estimates import NUM_CHOICES, Curves, curves, usual_ks
from cwm_jax.evals.test_time.execution import Bench, Filled, existing_of, fill
from cwm_jax.evals.test_time.report import markdown, plot
from cwm_jax.evals.test_time.samples import Samples, read_samples
from cwm_jax.evals.test_time.selection import NUM_TESTS, Choice, select
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.profiles import PROFILES, SWEProfile
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.rl.envs.swe.suite import FORMATS
from cwm_jax.sandbox import SandboxError
from cwm_jax.storage import write_json, write_whole

_TEST_S = 120.0  # of a generated test. Source: Meta's evaluation of tests


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("tts", help="test-time scaling: choose one of many patches")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluations of patches")
    parser.add_argument(
        "--tests", nargs="+", type=Path, default=[], help="folders of evaluations of tests"
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder; goes on where it was")
    parser.add_argument("--data", type=Path, help="the set's file (default: the shipped tasks)")
    parser.add_argument("--seed", type=int, default=0, help="of the shipped tasks, and of draws")
    parser.add_argument("--count", type=int, default=20, help="of the shipped tasks (default 20)")
    parser.add_argument(
        "--existing", type=Path, help="JSON: how tests of repositories are run, by problem or *"
    )
    parser.add_argument("--num-tests", type=int, default=NUM_TESTS, help="kept (default 5)")
    parser.add_argument("--ks", help="such as 1,4,16 (default: powers of two)")
    parser.add_argument(
        "--choices", type=int, default=NUM_CHOICES, help=f"for each k (default {NUM_CHOICES})"
    )
    parser.add_argument("--workers", type=int, default=4, help="runs at a time (default 4)")
    parser.add_argument("--mode", choices=("eval", "small"), default="eval", help="limits of a run")
    parser.add_argument("--unsafe", action="store_true", help="without bubblewrap")
    parser.set_defaults(main=_guarded)


def _guarded(args: argparse.Namespace) -> int:
    """2 for what a user has caused, 1 for a broken environment."""
    try:
        return _main(args)
    except (EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax tts: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"cwm_jax tts: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    samples = read_samples(args.runs, args.tests)
    benches = _benches(args, samples)
    tables = {name: len(one.patches) for name, one in samples.items()}
    ks = _ks(args.ks, max(tables.values()))
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
    print(_write(args, samples, filled, choices, found))
    return 0


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
    limit_s = min(profile.test_timeout_s, _TEST_S)
    profile = dataclasses.replace(profile, test_timeout_s=limit_s)
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
