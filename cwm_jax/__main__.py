"""The command line: ``python -m cwm_jax COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys

from cwm_jax.debugger import command as debug_command
from cwm_jax.evals import command as eval_command
from cwm_jax.evals.test_time import command as tts_command
from cwm_jax.forager import command as forage_command
from cwm_jax.planning import command as plan_command
from cwm_jax.rl import command as rl_command
from cwm_jax.serve import command as serve_command
from cwm_jax.sweeps import command as sweep_command
from cwm_jax.sweeps.ablation import command as ablate_command
from cwm_jax.trace import command as trace_command
from cwm_jax.training.scaling import command as laws_command


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cwm_jax", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    trace_command.add_parser(subparsers)
    plan_command.add_parser(subparsers)
    debug_command.add_parser(subparsers)
    serve_command.add_parser(subparsers)
    rl_command.add_parser(subparsers)
    sweep_command.add_parser(subparsers)
    ablate_command.add_parser(subparsers)
    laws_command.add_parser(subparsers)
    eval_command.add_parser(subparsers)
    tts_command.add_parser(subparsers)
    forage_command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.main(args)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
