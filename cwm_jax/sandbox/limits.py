"""What a run in the sandbox may use."""

from __future__ import annotations

import dataclasses
import math

MIB = 1 << 20
# Measured: an interpreter maps 15 MiB and holds five descriptors before it runs anything.
_LEAST = {"memory_bytes": 32 * MIB, "open_files": 8}


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
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name))


def _check(name: str, value: float) -> None:
    if name.endswith("_s"):
        right = isinstance(value, int | float) and math.isfinite(value) and value > 0
        expected = "seconds, more than 0"
    else:
        least = _LEAST.get(name, 1)
        right = isinstance(value, int) and value >= least
        expected = f"a whole number, at least {least}"
    if not right or isinstance(value, bool):
        raise ValueError(f"Limits.{name} is {value!r}; it is {expected}: give another value")
