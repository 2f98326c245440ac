"""``forage run``: tasks in, trajectories out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cwm_jax.data.trajectories import read_trajectories
from cwm_jax.forager.agent.forage import POLICIES, ForageSettings, forage
from cwm_jax.forager.agent.loop import EpisodeLimits
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.rl.envs.task_files import read_tasks
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.engines import LocalEngine


def add_parser(subparsers: Any) -> None:
    """Adds the part ``run`` to ``forage``."""
    run = subparsers.add_parser("run", help="let an agent solve tasks, keep what it did")
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument("--tasks", type=Path, help="JSONL of tasks of kind swe")
    source.add_argument("--shipped", type=int, metavar="COUNT", help="tasks of the project itself")
    run.add_argument("--out", type=Path, required=True, help="JSONL, gone on with if it is there")
    run.add_argument("--policy", choices=POLICIES, default="oracle")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--workers", type=int, help="processes (default one for each processor)")
    run.add_argument("--turns", type=int, default=EpisodeLimits.turns)
    run.add_argument("--characters", type=int, default=EpisodeLimits.characters)
    run.add_argument("--seconds", type=float, default=EpisodeLimits.seconds)
    run.set_defaults(main=_run)


def _run(args: argparse.Namespace) -> int:
    """2 for what a user has caused."""
    try:
        return _forage(args)
    except (ValueError, OSError, RuntimeError, EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax forage run: {error}", file=sys.stderr)
        return 2


def _forage(args: argparse.Namespace) -> int:
    if args.tasks is not None:
        tasks = read_tasks(args.tasks, read_data, owner="--tasks")
    else:
        tasks = shipped_tasks(args.seed, args.shipped)
    limits = EpisodeLimits(turns=args.turns, characters=args.characters, seconds=args.seconds)
    settings = ForageSettings(policy=args.policy, seed=args.seed, limits=limits)
    num_played = forage(tasks, args.out, settings, engine=LocalEngine(args.workers))
    rows = list(read_trajectories(args.out))
    num_solved = sum(row.solved is True for row in rows)
    print(f"{args.out}: {num_played} episodes played, {len(rows)} in all, {num_solved} solved")
    return 0
