"""``python -m cwm_jax forage``: what agents do in repositories, and other data of code."""

from __future__ import annotations

from typing import Any

from cwm_jax.forager.agent import command as agent_command
from cwm_jax.forager.documents import command as documents_command
from cwm_jax.forager.images import command as images_command
from cwm_jax.forager.tasks import command as tasks_command
from cwm_jax.forager.trajectories import command as trajectories_command


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("forage", help="data of repositories and of agents in them")
    parts = parser.add_subparsers(required=True, metavar="PART")
    images_command.add_parser(parts)
    tasks_command.add_parser(parts)
    agent_command.add_parser(parts)
    documents_command.add_parser(parts)
    trajectories_command.add_parser(parts)
