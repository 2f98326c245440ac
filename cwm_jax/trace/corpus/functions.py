"""Functions of source files as work, called with fuzzed arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.trace.corpus.scripts import script_paths
from cwm_jax.trace.episodes import Episode, Program
from cwm_jax.trace.fuzzing import fuzz_targets, fuzzed_programs
from cwm_jax.trace.tracer import TraceError, Tracer

INPUTS_PER_FUNCTION = 4  # assumed: how many the report traced is not published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncallable:
    """A function or file that has no call: it is counted with what cannot be traced."""

    name: str
    reason: str
    message: str
    source: str = "function"

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Raises TraceError."""
        raise TraceError(self.reason, self.message)


def functions(folder: Path, *, seed: int) -> Iterator[Program | Uncallable]:
    """Calls of the functions of every ``*.py`` below a folder, and what cannot be called."""
    for path in script_paths(folder):
        name = path.relative_to(folder).as_posix().replace("#", "-")
        source = path.read_text(encoding="utf-8", errors="replace")
        try:
            targets = fuzz_targets(source)
        except TraceError as error:
            yield Uncallable(name=name, reason=error.reason, message=str(error))
            continue
        for target in targets:
            if target.refused is not None:
                yield Uncallable(
                    name=f"{name}-{target.function}",
                    reason=target.refused,
                    message=f"{target.function} in line {target.lineno}: {target.refused}",
                )
        yield from fuzzed_programs(
            source,
            origin=name,
            name=name,
            seed=seed,
            inputs_per_function=INPUTS_PER_FUNCTION,
        )
