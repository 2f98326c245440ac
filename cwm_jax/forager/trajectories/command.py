"""``python -m cwm_jax forage export``: trajectories as a file of dialogs to be trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cwm_jax.forager.trajectories.export import export


def add_parser(parts: Any) -> None:
    """Adds ``export`` to the parts of ``forage``."""
    parser = parts.add_parser("export", help="write trajectories as dialogs, near-duplicates out")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="trajectory files")
    parser.add_argument("--out", required=True, type=Path, help="JSONL file, a source of kind chat")
    parser.set_defaults(main=_export)


def _export(args: argparse.Namespace) -> int:
    """2 for what a user has caused."""
    try:
        manifest = export(args.inputs, args.out)
    except (ValueError, OSError) as error:
        print(f"cwm_jax forage export: {error}", file=sys.stderr)
        return 2
    print(json.dumps(manifest, indent=2, sort_keys=True))
    return 0
