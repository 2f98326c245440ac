"""Pairs of small programs of which one ends and one does not; both are known by construction.

The two differ in a constant, a sign or a line. Each has a reason: what falls with each pass, or an
invariant that keeps the loop's condition true for ever. Memory is thought of as unlimited: some of
those that do not end hold ever larger numbers or lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from random import Random

from cwm_jax.evals.generated.termination_families import FAMILIES, Pair
from cwm_jax.trace.format import START_MARKER
from cwm_jax.trace.tracer import TraceLimits, Tracer

MAX_EVENTS = 300  # of those that end; the families' ranges hold it (measured: 151 at most)
_MAX_TRIES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class HaltingProgram:
    """One program with its answer.

    Attributes:
        name: ``FAMILY-PAIR-ends`` or ``-runs``.
        code: a module that defines ``main`` and calls it.
        halts: whether that call returns.
        family: of `FAMILIES`.
        reason: why it does or does not.
    """

    name: str
    code: str
    halts: bool
    family: str
    reason: str

    @property
    def context(self) -> str:
        """To be traced from the entry of ``main``."""
        return self.code.replace("def main():", f"def main():{START_MARKER}")


def halting_programs(
    seed: int, pairs: int, families: Sequence[str] = tuple(FAMILIES)
) -> Iterator[HaltingProgram]:
    """Two programs for each pair, in a random order; families take turns, no code comes twice.

    Raises:
        ValueError: a family has no further pair.
    """
    seen: set[str] = set()
    for number in range(pairs):
        family = families[number % len(families)]
        pair = _new_pair(f"{seed} {number} {family}", family, seen)
        programs = [_program(pair, family, number, halts) for halts in (True, False)]
        Random(f"{seed} {number} order").shuffle(programs)
        yield from programs


def not_as_said(programs: Sequence[HaltingProgram], *, unsafe: bool = False) -> list[str]:
    """Names of those that, run in the sandbox, end where they should not or the reverse.

    To end is to return within `MAX_EVENTS`.

    Raises:
        SandboxError: no sandbox can be had.
        TraceError: a program that does not run.
    """
    with Tracer(TraceLimits(max_events=MAX_EVENTS), unsafe=unsafe) as tracer:
        traces = [(program, tracer.trace(program.context)) for program in programs]
    return [
        program.name
        for program, trace in traces
        if trace.raised or trace.status != ("finished" if program.halts else "events")
    ]


def _new_pair(seed: str, family: str, seen: set[str]) -> Pair:
    rng = Random(seed)
    for _ in range(_MAX_TRIES):
        pair = FAMILIES[family](rng)
        if not {pair.ends, pair.runs} & seen:
            seen |= {pair.ends, pair.runs}
            return pair
    raise ValueError(
        f"family {family!r} gave {_MAX_TRIES} pairs that were there already; ask for fewer pairs, "
        "or for more families"
    )


def _program(pair: Pair, family: str, number: int, halts: bool) -> HaltingProgram:
    return HaltingProgram(
        name=f"{family}-{number}-{'ends' if halts else 'runs'}",
        code=pair.ends if halts else pair.runs,
        halts=halts,
        family=family,
        reason=pair.why_ends if halts else pair.why_runs,
    )
