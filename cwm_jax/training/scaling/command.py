"""``python -m cwm_jax laws``: what scaling laws derive for the ladder of sizes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cwm_jax.config import RunConfig
from cwm_jax.config.files import load_config
from cwm_jax.storage import write_whole
from cwm_jax.training.scaling.ladder import ladder, runs_of_configs, tables
from cwm_jax.training.scaling.laws import FILE_PREFIX, named_laws

_PATTERNS = ("cwm_*.py", "pretrain_32b.py", "midtrain_32b.py")


def add_parser(subparsers) -> None:
    """Adds ``laws``."""
    parser = subparsers.add_parser(
        "laws", help="learning rate and batch that scaling laws derive for configs"
    )
    parser.add_argument("--law", metavar="FILE", help="of a sweep (default: the report's laws)")
    parser.add_argument(
        "--config",
        action="extend",
        nargs="+",
        metavar="FILE",
        help="runs of the table (default: the ladder of configs/, without constant rates)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.set_defaults(main=_main)


def _main(args: argparse.Namespace) -> int:
    """2: bad input."""
    try:
        laws = named_laws("law" if args.law is None else FILE_PREFIX + args.law)
        text = tables(ladder(runs_of_configs(_configs(args.config)), laws), laws)
        if args.markdown is not None:
            write_whole(args.markdown, f"{text}\n".encode())
    except (ValueError, OSError) as error:
        print(f"cwm_jax laws: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _configs(paths: list[str] | None) -> list[RunConfig]:
    """Those that are named; else the ladder's, of which fine-tuning at a constant rate is none."""
    if paths is not None:
        return [load_config(path) for path in dict.fromkeys(paths)]
    found = sorted({file for pattern in _PATTERNS for file in Path("configs").glob(pattern)})
    if not found:
        raise ValueError(
            f"no {', '.join(_PATTERNS)} in {Path('configs').absolute()}; expected the project's "
            "configs: run it in the project's folder, or name files with --config"
        )
    configs = [load_config(str(file)) for file in found]
    return [config for config in configs if config.optimizer.schedule != "constant"]
