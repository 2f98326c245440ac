"""``python -m cwm_jax ablate``: runs an ablation's grid, and says what it found."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config import Recipe
from cwm_jax.sandbox import SandboxError
from cwm_jax.sweeps.ablation.grid import Ablation, Run, expand, load_ablation
from cwm_jax.sweeps.ablation.processes import Job, as_typed, cores_of_this_process, run_jobs


def add_parser(subparsers: Any) -> None:
    """Adds ``ablate``."""
    parser = subparsers.add_parser("ablate", help="run a grid of changed runs and seeds; compare")
    parser.add_argument("--config", required=True, help="Python file with get_ablation()")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the ablation's")
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="runs at once (default 1)"
    )
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="for every run"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing; compare what is finished"
    )
    parser.set_defaults(main=_main)


def _main(args: argparse.Namespace) -> int:
    """0: all finished; 1: some did not; 2: bad input."""
    # A kill, too, ends the runs that were begun: they save themselves.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _ablate(args)
    except (ValueError, OSError, SandboxError) as error:
        print(f"cwm_jax ablate: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _ablate(args: argparse.Namespace) -> int:
    if args.parallel < 1:
        raise ValueError(f"--parallel is {args.parallel}; expected 1 or more")
    ablation = load_ablation(args.config)
    runs = expand(ablation, args.config, seeds=args.seeds, settings=args.set)
    if not args.report_only:
        _run(ablation, runs, args.parallel)
    return _report(ablation, runs)


def _run(ablation: Ablation, runs: Sequence[Run], parallel: int) -> None:
    unfinished = [run for run in runs if not run.is_finished()]
    print(f"{ablation.name}: {len(runs)} runs, {len(runs) - len(unfinished)} of them finished")
    if not unfinished:
        return
    from cwm_jax.sweeps.ablation.preparation import prepare_shared

    prepare_shared(ablation, [run.config for run in unfinished])
    for run in unfinished:
        _check_paths(run)
    cores = len(cores_of_this_process())
    at_once = min(parallel, len(unfinished))
    print(f"{at_once} at once on {cores} cores; stopped, the same command goes on with them")
    jobs = [_job(run) for run in unfinished]
    run_jobs(jobs, parallel=at_once, note=lambda text: print(text, flush=True))


def _check_paths(run: Run) -> None:
    try:
        Recipe(phases=run.phases).check_paths()
    except ValueError as error:
        raise ValueError(
            f"{run.name} cannot begin: {error}; the head of the ablation's file says what comes "
            "before it"
        ) from error


def _report(ablation: Ablation, runs: Sequence[Run]) -> int:
    from cwm_jax.sweeps.ablation.report import make_report, to_text, write_report

    commands = {run.name: _command(run) for run in runs}
    report = make_report(ablation, runs, commands)
    print(to_text(report))
    print(", ".join(map(str, write_report(report, runs[0].parent))))
    return 1 if report.unfinished else 0


def _command(run: Run) -> str:
    return as_typed(["python", str(_train_file()), *run.arguments])


def _job(run: Run) -> Job:
    return Job(
        name=run.name,
        command=(sys.executable, str(_train_file()), *run.arguments),
        shown=_command(run),
        log=run.parent / "logs" / f"{run.name}.log",
    )


def _train_file() -> Path:
    """As one would type it from here."""
    file = Path(__file__).parents[3] / "train.py"
    return Path("train.py") if file.parent == Path.cwd() else file
