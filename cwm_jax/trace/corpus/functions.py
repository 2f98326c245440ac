"""Functions of source files as work, called with fuzzed arguments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cwm_jax.trace.corpus.scripts import script_paths
from cwm_jax.trace.episodes import Program, Uncallable, decode_source
from cwm_jax.trace.fuzzing import fuzz_targets, fuzzed_programs
from cwm_jax.trace.tracer import TraceError

INPUTS_PER_FUNCTION = 4  # assumed: how many the report traced is not published


def functions(folder: Path, *, seed: int, prefix: str = "") -> Iterator[Program | Uncallable]:
    """Calls of the functions of every ``*.py`` below a folder, and what cannot be called."""
    for path in script_paths(folder):
        origin = path.relative_to(folder).as_posix()
        name = f"{prefix}{origin}".replace("#", "-")
        try:
            source = decode_source(path.read_bytes())
            targets = fuzz_targets(source)
        except TraceError as error:  # a script of the folder may have the name alone
            yield Uncallable(
                name=f"{name}-*", reason=error.reason, message=str(error), source="function"
            )
            continue
        for target in targets:
            if target.refused is not None:
                yield Uncallable(
                    name=f"{name}-{target.function}",
                    reason=target.refused,
                    message=f"{target.function} in line {target.lineno}: {target.refused}",
                    source="function",
                )
        yield from fuzzed_programs(
            source,
            origin=origin,
            name=name,
            seed=seed,
            inputs_per_function=INPUTS_PER_FUNCTION,
        )
