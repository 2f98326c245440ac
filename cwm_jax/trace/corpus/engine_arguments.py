"""Arguments of commands that work in many processes: of this machine, or of a Ray cluster."""

from __future__ import annotations

import argparse
from typing import Any

from cwm_jax.trace.corpus.engines import Engine, LocalEngine, RayEngine


def add_engine(parser: Any) -> None:
    """Adds ``--engine``, ``--workers`` and ``--address``."""
    add = parser.add_argument
    add("--engine", choices=("local", "ray"), default="local", help="where to work (local)")
    add("--workers", type=int, metavar="N", help="processes (one per processor)")
    add("--address", help="of a Ray cluster")


def engine_of(args: argparse.Namespace) -> Engine:
    """What the arguments say.

    Raises:
        ValueError: a cluster is named and not used.
    """
    if args.engine == "ray":
        return RayEngine(address=args.address, workers=args.workers)
    if args.address is not None:
        raise ValueError(f"--address is {args.address!r}; expected none without --engine ray")
    return LocalEngine(args.workers)
