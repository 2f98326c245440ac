"""What a run in the sandbox, or a shell, may use."""

from __future__ import annotations

import dataclasses
import math

MIB = 1 << 20
# Measured: an interpreter maps 15 MiB and holds five descriptors before it runs anything.
_LEAST = {"memory_bytes": 32 * MIB, "open_files": 8}
_LEAST_OF_A_SHELL = {"memory_bytes": 32 * MIB, "open_files": 32, "processes": 2}  # assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one run; whichever is reached first ends it.

    The defaults are assumed: generous for the short programs that are traced and graded.

    Attributes:
        cpu_s: processor time of all its processes together.
        wall_s: time from start to end.
        memory_bytes: address space of each process, and resident memory of all together (a page
            that processes share counts once for each of them).
        scratch_bytes: everything below the scratch folder, which is also the largest file.
        processes: processes and threads at a time.
        open_files: descriptors of each process.
        output_bytes: standard output and standard error, each.
        reply_bytes: what a worker's handler returns.
    """

    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_bytes: int = 1024 * MIB
    scratch_bytes: int = 64 * MIB
    processes: int = 16
    open_files: int = 64
    output_bytes: int = MIB
    reply_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        _check(self, _LEAST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShellLimits:
    """Bounds of a shell. Time on the clock is limited, processor time is not.

    Attributes:
        timeout_s: of each command that states no other. Source: 120 s in CWM's sessions.
        output_bytes: of each command. Source: 480 KiB in CWM's sessions.
        memory_bytes: address space of each process, and resident memory of all together, as in
            `Limits`; assumed.
        scratch_bytes: everything below the scratch folder, which is also the largest file; assumed.
        processes: processes and threads at a time, bash among them; assumed.
        open_files: descriptors of each process; assumed.
    """

    timeout_s: float = 120.0
    output_bytes: int = 480 << 10
    memory_bytes: int = 4096 * MIB
    scratch_bytes: int = 512 * MIB
    processes: int = 256
    open_files: int = 1024

    def __post_init__(self) -> None:
        _check(self, _LEAST_OF_A_SHELL)


def _check(limits: Limits | ShellLimits, least: dict[str, int]) -> None:
    for field in dataclasses.fields(limits):
        name = f"{type(limits).__name__}.{field.name}"
        _check_value(name, getattr(limits, field.name), least.get(field.name, 1))


def _check_value(name: str, value: float, least: int) -> None:
    if name.endswith("_s"):
        right = isinstance(value, int | float) and math.isfinite(value) and value > 0
        expected = "seconds, more than 0"
    else:
        right = isinstance(value, int) and value >= least
        expected = f"a whole number, at least {least}"
    if not right or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it is {expected}: give another value")
