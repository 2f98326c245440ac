"""Command line: ``python -m convert from-hf | to-hf | check``; run with --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.check import check
from convert.from_hf import from_hf
from convert.sources import DTYPES
from convert.to_hf import MAX_SHARD_BYTES, to_hf


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done (check: equal), 1 differences found, 2 refused (a line on stderr)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            return check(options.a, options.b, logits=options.logits)
        if options.command == "from-hf":
            print(from_hf(options.source, options.destination, dtype=options.dtype))
        else:
            print(
                to_hf(
                    options.source,
                    options.destination,
                    dtype=options.dtype,
                    max_shard_bytes=options.max_shard_bytes,
                )
            )
        return 0
    except (ValueError, OSError) as error:
        print(f"convert {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("from-hf", "Hugging Face folder SRC to a checkpoint folder DST"),
        ("to-hf", "checkpoint or run SRC to a Hugging Face folder DST"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", metavar="SRC", type=Path)
        command.add_argument("destination", metavar="DST", type=Path)
        command.add_argument("--dtype", choices=DTYPES, help="default: as stored")
        if name == "to-hf":
            command.add_argument(
                "--max-shard-bytes",
                type=int,
                default=MAX_SHARD_BYTES,
                help="tensor data in one file (default: %(default)s)",
            )
    text = (
        "compare two models tensor by tensor: folders of either kind; exit status 1 if they differ"
    )
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("a", metavar="A", type=Path)
    command.add_argument("b", metavar="B", type=Path)
    command.add_argument(
        "--logits", action="store_true", help="also run both in float32 (whole models in memory)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
