"""``python -m cwm_jax sweep``: searches rates and batches at several computes, and fits laws."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cwm_jax.config import schema
from cwm_jax.config.files import load_sweep
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.engines import Engine, LocalEngine, RayEngine


def add_parser(subparsers: Any) -> None:
    """Adds ``sweep``."""
    parser = subparsers.add_parser(
        "sweep",
        help="train many small runs; fit learning rate and batch as laws of the compute",
        description="Trains the runs of a sweep, fits laws to them, tests the laws at a scale that "
        "was left out. A sweep that was stopped goes on when it is called again; with a larger "
        "budget it trains the runs that are missing.",
    )
    add = parser.add_argument
    add("--config", required=True, help="Python file whose get_config() returns a SweepConfig")
    add("--budget", type=float, required=True, metavar="FLOP", help="of the search, as 1e14")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="as of train.py")
    add("--dry-run", action="store_true", help="print the runs of the search and train none")
    add(
        "--together",
        choices=("one_by_one", "map", "vmap"),
        help="how runs share a device (the fastest on this kind, as measured)",
    )
    add("--group", type=int, metavar="N", help="runs side by side (1 one by one, else 16)")
    add("--engine", choices=("local", "ray"), default="local", help="where to train (local)")
    add("--workers", type=int, metavar="N", help="processes (this one; with Ray one per processor)")
    add("--address", help="of a Ray cluster")
    add("--gpus", type=float, default=0, metavar="N", help="of each of Ray's workers (0)")
    parser.set_defaults(main=_main)


def _main(args: argparse.Namespace) -> int:
    """0: trained and fitted; 1: the runs do not give a law; 2: bad input."""
    try:
        return _sweep(args)
    except (ValueError, OSError, SandboxError) as error:
        print(f"cwm_jax sweep: {error}", file=sys.stderr)
        return 2


def _sweep(args: argparse.Namespace) -> int:
    from cwm_jax.sweeps import design, report
    from cwm_jax.sweeps.sweep import SweepOptions, run_sweep

    config = schema.override(load_sweep(args.config), *args.set)
    count = design.num_points(config, args.budget)
    print(report.describe_design(config, count), flush=True)
    if args.dry_run:
        return 0
    options = SweepOptions(together=args.together, group_runs=args.group, engine=_engine(args))
    return run_sweep(config, count, options)


def _engine(args: argparse.Namespace) -> Engine | None:
    """None where this process trains."""
    if args.engine == "ray":
        return RayEngine(address=args.address, workers=args.workers, num_gpus=args.gpus)
    if args.address is not None or args.gpus:
        raise ValueError(
            "--address and --gpus are of a Ray cluster, and --engine is local; expected both or "
            "none: add --engine ray"
        )
    return None if args.workers in (None, 1) else LocalEngine(workers=args.workers)
