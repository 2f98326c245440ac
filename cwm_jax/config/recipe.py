"""Runs that follow each other."""

from __future__ import annotations

import dataclasses

from cwm_jax.config.run import RunConfig
from cwm_jax.config.schema import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Phases, each a run with its own folder; a config file may return one in place of a run.

    They are started in their order, each when the one before it is finished; a finished one is not
    trained again.
    """

    phases: tuple[RunConfig, ...]

    def __post_init__(self) -> None:
        check_types(self)
        names = [phase.run_name for phase in self.phases]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"the phases of a recipe are named {names}; expected one or more, each with its "
                "own run_name"
            )
