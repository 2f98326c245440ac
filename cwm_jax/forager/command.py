"""``python -m cwm_jax forage``: trajectories of agents in repositories."""

from __future__ import annotations

from typing import Any

from cwm_jax.forager.agent import command as agent_command
from cwm_jax.forager.trajectories import command as trajectories_command


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("forage", help="agents in repositories, and what they do there")
    parts = parser.add_subparsers(required=True, metavar="PART")
    agent_command.add_parser(parts)
    trajectories_command.add_parser(parts)
