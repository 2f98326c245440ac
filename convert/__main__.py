"""Command line: ``python -m convert from-hf | to-hf | from-meta | to-meta | quantize | check``.

A conversion that was killed is continued by the same command. Its memory is that of the libraries
plus at most workers x 5 x the largest block (32 MiB for most sources).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.check import check
from convert.exports import MAX_SHARD_BYTES
from convert.sources import DTYPES

_M_ARENA_MAX = -8  # malloc.h
_COMMANDS = {
    "from-hf": "Hugging Face folder SRC to a checkpoint folder DST",
    "to-hf": "checkpoint or run SRC to a Hugging Face folder DST",
    "from-meta": "folder SRC in Meta's layout (.distcp, params.json) to a checkpoint folder DST",
    "to-meta": "checkpoint or run SRC to a folder DST in Meta's layout; needs PyTorch",
    "quantize": "Hugging Face folder, checkpoint or run SRC to a folder DST of quantized weights",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done (check: equal), 1 differences found, 2 refused (a line on stderr)."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "check":
            return check(**options)
        name = command.replace("-", "_")
        convert = getattr(importlib.import_module(f"convert.{name}"), name)  # PyTorch for one alone
        print(convert(options.pop("source"), options.pop("destination"), **options))
        return 0
    except (ValueError, OSError) as error:
        text = "; ".join([str(error), *getattr(error, "__notes__", [])])
        print(f"convert {command}: {' '.join(text.split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", metavar="SRC", type=Path)
        command.add_argument("destination", metavar="DST", type=Path)
        if name == "quantize":
            _add_format(command)
        else:
            command.add_argument("--dtype", choices=DTYPES, help="default: as stored")
        if name.startswith("to-") or name == "quantize":
            command.add_argument(
                "--max-shard-bytes",
                type=int,
                default=MAX_SHARD_BYTES,
                help="tensor data in one file (default: %(default)s)",
            )
        command.add_argument(
            "--workers",
            type=int,
            help="parts converted at once (default: the cores, as far as 4 GiB of blocks allow)",
        )
        command.add_argument(
            "--restart",
            action="store_true",
            help="discard what a killed conversion to DST has left; default: go on with it",
        )
    text = "compare two models tensor by tensor: folders of any kind; exit status 1 if they differ"
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("a", metavar="A", type=Path)
    command.add_argument("b", metavar="B", type=Path)
    command.add_argument(
        "--logits", action="store_true", help="also run both in float32 (whole models in memory)"
    )
    return parser


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype", choices=("int8", "int4", "fp8"), required=True, help="of the linear maps"
    )
    command.add_argument(
        "--group-size",
        type=int,
        help="inputs that share a scale, int4 alone (default: the most up to 128 that fits)",
    )


def _limit_arenas() -> None:
    """Lets glibc make two arenas, not one for each thread.

    Each keeps what was freed in it: 0.9 GB at the 32B's width where 0.2 GB are held (measured).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


if __name__ == "__main__":
    _limit_arenas()
    sys.exit(main())
