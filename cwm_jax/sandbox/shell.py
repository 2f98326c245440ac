"""A shell in a sandbox."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwm_jax.sandbox import userland
from cwm_jax.sandbox.limits import Limits, ShellLimits
from cwm_jax.sandbox.outcome import SandboxError
from cwm_jax.sandbox.run import check_files
from cwm_jax.sandbox.supervisor import Report, Setup, Supervisor

_FILE_S = 30.0  # assumed: what reading or writing a file may take on a busy machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShellReply:
    """What came of a command.

    Attributes:
        output: stdout and stderr as they came, decoded; all of them that there was, whatever the
            outcome, up to the limit.
        exit_code: of the command; where the shell ended, of the shell, negative for a signal; else
            None.
        outcome: "ok": the command ended, with whatever code. After any other the next command finds
            a fresh session. "exit": the shell ended, by this command or since the one before, or
            had too much memory; "timeout"; "too_long": too much output.
        detail: why it is not "ok", in words.
    """

    output: str
    exit_code: int | None
    outcome: Literal["ok", "exit", "timeout", "too_long"]
    detail: str


class Shell:
    """A bash in a sandbox of its own: folder, variables, functions and jobs last.

    Inside are bash, the programs of /usr/bin and this interpreter as ``python``, with the standard
    library alone; nothing else of the host, and no network. /tmp is the scratch folder, HOME and
    the default directory. Commands read an empty stdin. A command has ended when its foreground
    has, as at a prompt: what its jobs write later comes with the output of later commands.

    Where the outcome is not "ok", everything that still runs is killed, and the next command finds
    a new bash in the default directory, after the start script; the files are as they were.

    What runs inside is the user's of the shell, and so is bash: a command that redefines `eval` or
    reads bash's script or memory can feign an ending or an exit code, or hold its own call up to
    the time-out. It can do nothing else to the host's side, whose process inside it cannot reach.
    So nothing that is said here may decide on a reward. /dev/shm cannot be written, and ``set -x``
    shows lines of ours as well.

    Threads may share a shell, and wait for each other.

    Args:
        files: contents by path relative to the scratch folder.
        readable: files and folders, bound read-only at the same place.
        base: a folder that the scratch folder begins as; it is copied on write, stays as it is,
            and may be the base of many shells. What is inside it belongs to this process's user,
            and whoever is inside may do with it what its modes let others do.
        limits: of the shell; what is in the base does not count.
        start: commands with which each session starts. Only of the first it is asserted that they
            work.
        unsafe: without bubblewrap, in a temporary folder. The commands can do all that this process
            can (``kill -9 -1`` ends all of this user's processes), and what has left the session
            survives.

    Raises:
        SandboxError: if the sandbox cannot be had.
        ValueError: if the start script fails, a path cannot be used, or there is a base and no
            bubblewrap.
    """

    def __init__(
        self,
        *,
        files: Mapping[str, bytes] | None = None,
        readable: Sequence[Path] = (),
        base: Path | None = None,
        limits: ShellLimits | None = None,
        start: str = "",
        unsafe: bool = False,
    ) -> None:
        self._limits, files = limits or ShellLimits(), dict(files or {})
        check_files(files, self._limits.scratch_bytes)
        if base is not None:
            base = _checked_base(base, unsafe=unsafe)
        if unsafe:  # elsewhere it is /etc/gitconfig
            files = {".gitconfig": userland.GIT_CONFIG, **files}
        own = self._limits_of_call(self._limits.timeout_s)
        setup = Setup(
            program=None, readable=readable, base=base, limits=own, unsafe=unsafe, shell=True
        )
        self._lock = threading.Lock()
        self._supervisor: Supervisor | None = Supervisor(setup)
        self.folder = self._supervisor.scratch
        try:
            self._start({"files": files, "script": _encoded(start)})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, command: str, *, timeout_s: float | None = None) -> ShellReply:
        """Runs a command, of any number of lines; NULs in it are dropped, as bash does.

        Raises:
            SandboxError: if the sandbox, and with it the files, is lost.
            ValueError: if the shell is closed.
        """
        return self._run({"do": "run", "command": _encoded(command)}, timeout_s)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Reads a regular file inside; a relative path starts in the scratch folder.

        No program that is inside takes part, but links are followed.

        Raises:
            OSError: as `open` does, as `FileNotFoundError` and others; with ``EFBIG`` if it is
                longer than ``max_bytes``.
            SandboxError: as `run`.
        """
        request = {"do": "read", "path": path, "max_bytes": max_bytes}
        content = self._file_call(request, max_bytes).value
        return content or b""

    def write(self, path: str, content: bytes) -> None:
        """Writes a regular file inside, with the folders above it; raises as `read` does.

        A file that exists keeps its mode, and where there is no room for it its content.
        """
        self._file_call({"do": "write", "path": path, "content": content}, 1)

    def close(self) -> None:
        """Ends every process of the sandbox, and with it its files; again, it does nothing."""
        with self._lock:
            self._drop()

    def _start(self, request: Mapping[str, Any]) -> None:
        reply = self._run({"do": "start", **request}, None)
        if reply.outcome != "ok" or reply.exit_code:
            raise ValueError(
                f"the start script of a shell fails: {reply.detail or reply.exit_code}; it is to "
                f"end with status 0: mend what its output says\n{reply.output}"
            )

    def _run(self, request: Mapping[str, Any], timeout_s: float | None) -> ShellReply:
        timeout_s = self._limits.timeout_s if timeout_s is None else timeout_s
        report = self._call(
            {**request, "timeout_s": timeout_s},
            self._limits_of_call(timeout_s),
        )
        if report.outcome not in ("ok", "exit", "timeout", "too_long"):
            self.close()
            raise SandboxError(f"the shell's sandbox failed: {report.outcome} {report.detail}")
        return ShellReply(
            output=(report.value or b"").decode(errors="replace"),
            exit_code=report.returncode if report.outcome in ("ok", "exit") else None,
            outcome=report.outcome,
            detail=report.detail,
        )

    def _file_call(self, request: Mapping[str, Any], reply_bytes: int) -> Report:
        limits = dataclasses.replace(self._limits_of_call(_FILE_S), reply_bytes=max(1, reply_bytes))
        report = self._call(request, limits)
        if report.outcome != "ok":
            raise OSError(report.returncode, os.strerror(report.returncode), request["path"])
        return report

    def _call(self, request: Mapping[str, Any], limits: Limits) -> Report:
        with self._lock:
            if self._supervisor is None:
                raise ValueError("the shell is closed, or its sandbox was lost: make another one")
            kept = False
            try:
                report = self._supervisor.call(request, limits)
                kept = not report.retire
            finally:  # also after Ctrl-C in the middle of a frame
                if not kept:
                    self._drop()
        if not kept:
            raise SandboxError(f"{report.detail}: its files are gone, make another shell")
        return report

    def _drop(self) -> None:
        if self._supervisor:
            self._supervisor.close()
        self._supervisor = None

    def _limits_of_call(self, wall_s: float) -> Limits:
        limits = self._limits
        return Limits(
            wall_s=wall_s,
            memory_bytes=limits.memory_bytes,
            scratch_bytes=limits.scratch_bytes,
            processes=limits.processes,
            open_files=limits.open_files,
            output_bytes=limits.output_bytes,
            reply_bytes=limits.output_bytes,
        )


def _checked_base(base: Path, *, unsafe: bool) -> Path:
    if unsafe:
        raise ValueError(
            f"a shell has the base {base} and is unsafe; a folder is copied on write under "
            "bubblewrap alone: install it, or leave the base out"
        )
    if not base.is_dir():
        raise ValueError(f"base {base} is no folder: name one that there is")
    return Path(os.path.realpath(base))


def _encoded(text: str) -> bytes:
    return text.replace("\0", "").encode(errors="replace")
