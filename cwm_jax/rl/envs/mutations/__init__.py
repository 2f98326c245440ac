"""Mutations of Python sources: one engine for any source, with a fault to be found."""

from cwm_jax.rl.envs.mutations.functions import Function, functions
from cwm_jax.rl.envs.mutations.kinds import (
    KINDS,
    SHARES,
    Mutation,
    candidates,
    is_mutation,
    mutations,
)

__all__ = [
    "KINDS",
    "SHARES",
    "Function",
    "Mutation",
    "candidates",
    "functions",
    "is_mutation",
    "mutations",
]
