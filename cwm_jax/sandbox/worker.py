"""A warm interpreter in a sandbox."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from cwm_jax.sandbox.limits import Limits
from cwm_jax.sandbox.outcome import Outcome, Reply
from cwm_jax.sandbox.supervisor import Report, Setup, Supervisor


class Worker:
    """An interpreter that has imported a program once and forks for every call.

    Calls start from the same state: the program as imported, an empty scratch folder, no process
    left of the call before. A sandbox that was lost is started again. Threads may share a worker,
    and wait for each other; after a fork of this process each side needs its own.

    Args:
        program: a self-contained Python file that defines ``handle(request: bytes) -> bytes``. Code
            inside can read a copy of it, the interpreter's installation and ``readable``. Among its
            globals it finds ``reply(value: bytes)``, which answers at once and ends the child.
        readable: files and folders, bound read-only at the same place.
        limits: of each call that states no others. ``scratch_bytes`` holds for the worker.
        unsafe: without bubblewrap. The limits remain, but for those on processes and on the scratch
            folder's size; what has left its process group survives.
        preload: modules of the standard library to import before the program.
        age: processes and files made, and gone, before the first call of every start: what counts
            them (a pid, an inode) differs between two workers of other ages and equal calls.

    Raises:
        SandboxError: if the sandbox cannot be had.
        ValueError: if the program does not import, or a path cannot be bound.
    """

    def __init__(
        self,
        program: Path,
        *,
        readable: Sequence[Path] = (),
        limits: Limits | None = None,
        unsafe: bool = False,
        preload: Sequence[str] = (),
        age: int = 0,
    ) -> None:
        self._setup = Setup(
            program=Path(program).absolute(),
            readable=tuple(readable),
            limits=limits or Limits(),
            unsafe=unsafe,
            preload=tuple(preload),
            age=age,
        )
        self._lock = threading.Lock()
        self._supervisor: Supervisor | None = Supervisor(self._setup)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, request: bytes, *, stdin: bytes = b"", limits: Limits | None = None) -> Reply:
        """Runs ``handle(request)`` in a new child and returns how that ended.

        Raises:
            SandboxError: if the sandbox had to be started again and could not.
            ValueError: if the limits ask for more scratch space than the worker has.
        """
        limits = limits or self._setup.limits
        if limits.scratch_bytes > self._setup.limits.scratch_bytes:
            raise ValueError(
                f"a call asks for {limits.scratch_bytes} scratch bytes and its worker has "
                f"{self._setup.limits.scratch_bytes}: give the worker the largest limit"
            )
        with self._lock:
            report = self._answer({"request": request, "stdin": stdin}, limits)
        return Reply(
            outcome=Outcome(report.outcome),
            value=report.value,
            stdout=report.stdout,
            stderr=report.stderr,
            cpu_s=report.cpu_s,
            wall_s=report.wall_s,
            detail=report.detail,
        )

    def close(self) -> None:
        """Ends every process of the sandbox; a later call starts it again."""
        with self._lock:
            self._drop()

    def _answer(self, request: Mapping[str, bytes], limits: Limits) -> Report:
        if self._supervisor and not self._supervisor.alive():
            self._drop()
        self._supervisor = self._supervisor or Supervisor(self._setup)
        kept = False
        try:
            report = self._supervisor.call(request, limits)
            kept = not report.retire
        finally:  # also after Ctrl-C in the middle of a frame
            if not kept:
                self._drop()
        return report

    def _drop(self) -> None:
        if self._supervisor:
            self._supervisor.close()
        self._supervisor = None
