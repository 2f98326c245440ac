"""Warm sandboxes that the episodes of an environment share."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import EnvironmentFailure, waiting_for_others
from cwm_jax.sandbox import Limits, Outcome, Pool, Reply, SandboxError

_LOST = "the sandbox was lost"  # as `Reply.detail` of sandbox/supervisor.py begins


class Sandboxes:
    """Forks of one program, for any thread; nothing starts before the first call.

    They end with `close`, with the last reference, or with this process.

    Args:
        program: as for `cwm_jax.sandbox.Pool`; requests come to it as JSON.
        limits: of a call that states no others, and the most scratch space of any.
        packages: distributions installed here whose packages the program can import.
        preload: modules of the standard library that are imported before the program.
        unsafe: without bubblewrap.
        size: calls at a time; None is one for each processor.

    Raises:
        ValueError: if a package is not installed.
    """

    def __init__(
        self,
        program: Path,
        *,
        limits: Limits,
        packages: Sequence[str] = (),
        preload: Sequence[str] = (),
        unsafe: bool = False,
        size: int | None = None,
    ):
        self._folders = [folder for name in packages for folder in _folders(name)]
        self._program, self._limits = program, limits
        self._preload, self._unsafe = tuple(preload), unsafe
        self._size = size or os.cpu_count() or 1
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def call(self, request: Any, *, stdin: bytes = b"", limits: Limits | None = None) -> Reply:
        """As `Pool.call`; a sandbox that was lost gets the request a second time.

        Raises:
            EnvironmentFailure: if there is no sandbox, or it was lost twice.
        """
        content, reply = json.dumps(request).encode(), None
        for _ in range(2):
            try:
                reply = self._started().call(content, stdin=stdin, limits=limits)
            except SandboxError as error:
                raise EnvironmentFailure(str(error)) from error
            if reply.outcome not in (Outcome.EXIT, Outcome.WALL) or _LOST not in reply.detail:
                return reply
        assert reply
        raise EnvironmentFailure(f"twice, {reply.detail}")

    def close(self) -> None:
        """Ends all processes; a later call starts them again."""
        with self._lock:
            if self._pool:
                self._end()
            self._pool = None

    def _started(self) -> Pool:
        with self._lock:
            if self._pool is None:
                folder = tempfile.mkdtemp(prefix="cwm-jax-program-")  # read at every start
                path = Path(folder, self._program.name)
                path.write_text(f"{self._head()}{self._program.read_text()}")
                pool = Pool(
                    path,
                    size=self._size,
                    readable=self._folders,
                    limits=self._limits,
                    unsafe=self._unsafe,
                    preload=self._preload,
                    waiting=waiting_for_others,
                )
                self._pool, self._end = pool, weakref.finalize(self, _end, pool, folder)
            return self._pool

    def _head(self) -> str:
        """What makes the packages importable; the program's lines keep their numbers."""
        if not self._folders:
            return ""
        parents = sorted({os.path.dirname(folder) for folder in self._folders})
        return f"import sys; sys.path += {parents!r}; del sys; "


def _folders(name: str) -> list[Path]:
    """The packages of a distribution, and what says which version it is; nothing is imported.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    inside = [file for file in files if len(file.parts) > 1 and file.parts[0] != ".."]
    tops = {Path(str(file.locate())).parents[len(file.parts) - 2] for file in inside}
    if not tops:
        raise ValueError(
            f"the package {name!r} is not installed here, and a profile wants it: "
            '`pip install "math-verify[antlr4_13_2]"` brings it, or take another profile'
        )
    return sorted(tops)


def _end(pool: Pool, folder: str) -> None:
    pool.close()
    shutil.rmtree(folder, ignore_errors=True)
