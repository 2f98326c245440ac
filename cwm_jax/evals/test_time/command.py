"""``python -m cwm_jax tts``: choose one of many patches of each problem by tests; measure it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; what it needs is imported when it runs."""
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
    parser.add_argument("--num-tests", type=int, default=5, help="kept of a problem (default 5)")
    parser.add_argument("--ks", help="how many patches: 1,4,16 (default: powers of two)")
    parser.add_argument("--choices", type=int, default=400, help="of k patches (default 400)")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time (default 4)")
    parser.add_argument("--mode", choices=("eval", "small"), default="eval", help="limits of a run")
    parser.add_argument("--unsafe", action="store_true", help="without bubblewrap")
    parser.set_defaults(main=_guarded)


def _guarded(args: argparse.Namespace) -> int:
    """2 for what a user has caused, 1 for a broken environment."""
    from cwm_jax.evals.test_time.scaling import scale
    from cwm_jax.rl.environment import EnvironmentFailure
    from cwm_jax.sandbox import SandboxError

    try:
        print(scale(args))
    except (EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax tts: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"cwm_jax tts: {error}", file=sys.stderr)
        return 2
    return 0
