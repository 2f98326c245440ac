"""``python -m cwm_jax forage``: repositories that can be run, tasks, trajectories, documents."""

from __future__ import annotations

from typing import Any

from cwm_jax.forager.documents import command as documents_command


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("forage", help="data of repositories and of agents in them")
    parts = parser.add_subparsers(required=True, metavar="PART")
    documents_command.add_parser(parts)
