"""Where the time of a run goes, over all processes that worked on it.

Every second since a run's first process began is booked on one cause; the goodput is the share of
those in which steps ran that were kept:

    start_up    from the beginning of a process to its first step: imports, corpus, restore
    compile     of steps
    data_stall  the loop waited for rows and no step was running (at most: the whole wait counts
                where the step before ended during it)
    checkpoint  the loop waited for a save
    evaluation  held-out losses
    step        steps that are part of the run
    repeated    what a process did after the checkpoint from which the next one went on
    restart     between the last sign of a process and the beginning of the next

The books are ``goodput.json`` in the run's folder, written at every save; what a killed process did
after that is known from its metrics lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cwm_jax.storage import write_json

GOODPUT_FILE = "goodput.json"
CAUSES = (
    "start_up",
    "compile",
    "data_stall",
    "checkpoint",
    "evaluation",
    "step",
    "repeated",
    "restart",
)


class Goodput:
    """The books, and the clock of the present process.

    Args:
        path: of the books; None keeps none (every process but the first).
        started: when this process began, in seconds since the epoch; None is now.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._path, self._clock = path, clock
        self._cause = "start_up"
        self._since = clock() if started is None else started
        self.seconds: dict[str, float] = dict.fromkeys(CAUSES, 0.0)

    def resume(self, step: int, lines: list[dict[str, Any]]) -> None:
        """Takes over the books of earlier processes, before this one's first step.

        Args:
            step: from which this process goes on.
            lines: of metrics.jsonl, those after ``step`` among them.

        Raises:
            ValueError: the books are not readable.
        """
        if self._path is None:
            return
        if not self._path.exists():
            self.write(step)
            return
        books = _read(self._path)
        began = self._since
        for cause, seconds in books["seconds"].items():
            self.seconds[cause] += seconds
        undone = [x for x in lines if step < x["step"] <= books["step"]]
        lost = min(sum(x["step_time_s"] for x in undone), self.seconds["step"])
        seen = min(began, max([books["until_s"], *(x["time_s"] for x in lines)]))
        self.seconds["step"] -= lost
        self.seconds["repeated"] += lost + max(0.0, seen - books["until_s"])
        if not books["finished"]:  # else nobody waited
            self.seconds["restart"] += began - seen
        self.write(step)

    def begin(self, cause: str) -> None:
        """From now on, time is booked on that cause."""
        self._book(self._cause)
        self._cause = cause

    @contextlib.contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Books what is inside on a cause, then goes on with the one before."""
        before = self._cause
        self.begin(cause)
        try:
            yield
        finally:
            self.begin(before)

    def wait(self, wait: Callable[[], Any], is_overlapped: Callable[[], bool]) -> tuple[Any, float]:
        """What a wait for rows returns, and its seconds: a stall unless a step ran throughout."""
        self._book(self._cause)
        start = self._since
        result = wait()
        self._book(self._cause if is_overlapped() else "data_stall")
        return result, self._since - start

    def fields(self) -> dict[str, float]:
        """Of a metrics line: seconds on each cause so far, and the share of ``step``."""
        self._book(self._cause)
        total = sum(self.seconds.values())
        share = self.seconds["step"] / total if total else 0.0
        return {"goodput": share} | {f"{name}_s": self.seconds[name] for name in CAUSES}

    def write(self, step: int, *, finished: bool = False) -> None:
        """Writes the books: ``step`` steps are done."""
        self._book(self._cause)
        if self._path is not None:
            books = {"seconds": self.seconds, "until_s": self._since, "step": step}
            write_json(self._path, books | {"finished": finished})

    def describe(self) -> str:
        """One line for the end of a run."""
        fields = self.fields()
        total = sum(self.seconds.values())
        causes = (f"{name.replace('_', ' ')} {self.seconds[name]:,.1f}" for name in CAUSES)
        return f"goodput {fields['goodput']:.1%} of {total:,.1f} s: {', '.join(causes)}"

    def _book(self, cause: str) -> None:
        now = self._clock()
        self.seconds[cause] += now - self._since
        self._since = now


FIELDS = frozenset({"goodput", "data_wait_s", *(f"{name}_s" for name in CAUSES)})
"""Those of a metrics line; ``data_wait_s`` is the whole wait for a step's rows."""


def process_start() -> float:
    """When this process began, in seconds since the epoch; where Linux does not say it, now."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[19])  # proc(5): starttime, the 22nd field, since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, AttributeError):
        return time.time()


def is_finished(path: Path) -> bool:
    """Whether the run of these books has gone to the end of its plan."""
    return path.exists() and bool(_read(path)["finished"])


def _read(path: Path) -> dict[str, Any]:
    try:
        books = json.loads(path.read_text())
        unknown = {*books["seconds"]} - {*CAUSES}
        if unknown:
            raise ValueError(f"unknown cause {unknown.pop()!r}")
        return {key: books[key] for key in ("seconds", "until_s", "step", "finished")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error!r}); remove it to begin new books"
        ) from error
