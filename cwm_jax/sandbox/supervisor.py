"""One running sandbox: requests to it, reports from it."""

from __future__ import annotations

import contextlib
import dataclasses
import marshal
import os
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.sandbox import bubblewrap, userland
from cwm_jax.sandbox.limits import Limits
from cwm_jax.sandbox.outcome import SandboxError
from cwm_jax.sandbox.process import LostError, Process, memory_file
from cwm_jax.sandbox.seccomp import seccomp_program

# No user packages, nothing from the working folder; not -I, which would ignore PYTHONHASHSEED.
_OPTIONS = ("-s", "-P")
_ZYGOTE = Path(__file__).with_name("zygote.py")
_SESSION = Path(__file__).with_name("session.py")
_LENGTH = struct.Struct("<Q")  # these three as in zygote.py
_REPORT = struct.Struct("<16s??xxidd4Q")
_DETAIL_BYTES = 1 << 16
# Assumed: what a start, or the work around a call, may take on a busy machine.
_START_S = 60.0
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The zygote's account of one call; what is bytes, untrusted code wrote."""

    outcome: str
    retire: bool
    returncode: int
    cpu_s: float
    wall_s: float
    value: bytes | None
    stdout: bytes
    stderr: bytes
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a sandbox is started with.

    Attributes:
        program: None where each call runs an executable.
        shell: whether its first process keeps a shell, instead of forking for each call.
        base: a folder that the scratch folder is at first, copied on write.
    """

    program: Path | None
    readable: Sequence[Path] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)
    unsafe: bool = False
    preload: Sequence[str] = ()
    age: int = 0
    shell: bool = False
    base: Path | None = None


class Supervisor:
    """Starts a zygote and speaks with it; one thread at a time.

    Raises:
        SandboxError: if bubblewrap is missing or does not start.
        ValueError: if the program cannot be imported or a readable path not be bound.
    """

    def __init__(self, setup: Setup) -> None:
        readable = bubblewrap.check_readable(setup.readable)
        self._in_step = False  # whether the last frame was answered in full
        self._scratch = tempfile.mkdtemp(prefix="cwm-jax-unsafe-") if setup.unsafe else None
        uid = None if setup.unsafe else bubblewrap.unique_uid()
        try:
            self.process = self._start(setup, readable, uid)
        except BaseException:
            self._remove_scratch()
            raise
        try:
            self._introduce(setup, readable, uid)
        except BaseException:
            self.close()
            raise

    @property
    def scratch(self) -> str:
        """The scratch folder as the code inside names it."""
        return self._scratch or bubblewrap.SCRATCH

    def call(self, request: Mapping[str, Any], limits: Limits) -> Report:
        """Sends one request and waits for its report; a lost zygote is reported, too."""
        frame = {"files": {}, "limits": dataclasses.asdict(limits), **request}
        try:
            return self._exchange(frame, limits, limits.wall_s + _GRACE_S)
        except LostError as error:
            return _lost("exit", f"{error} {self.process.stderr()}")
        except TimeoutError as error:
            return _lost("wall", str(error))

    def alive(self) -> bool:
        return self.process.alive()

    def close(self) -> None:
        """Ends every process of the sandbox."""
        self.process.end(_GRACE_S if self._in_step else 0)
        self._remove_scratch()

    def _start(self, setup: Setup, readable: Sequence[Path], uid: int | None) -> Process:
        python = bubblewrap.interpreter()
        first = _SESSION if setup.shell else _ZYGOTE
        if self._scratch:
            env = bubblewrap.environment(self._scratch, shell=setup.shell)
            return Process([python, *_OPTIONS, str(first)], env=env, cwd=self._scratch)
        contents = {"seccomp": seccomp_program(), "zygote.py": _ZYGOTE.read_bytes()}
        if setup.shell:
            contents |= {"session.py": _SESSION.read_bytes()}
            contents |= userland.files(bubblewrap.NAMESPACE_UID if uid is None else uid)
        if setup.program:
            contents["program.py"] = setup.program.read_bytes()
        size, base = setup.limits.scratch_bytes, setup.base
        with contextlib.ExitStack() as stack:
            fds = {}
            for name, content in contents.items():
                fds[name] = memory_file(content)
                stack.callback(os.close, fds[name])
            line = bubblewrap.command(
                uid=uid,
                scratch_bytes=size,
                readable=readable,
                fds=fds,
                base=base,
                shell=setup.shell,
            )
            line += [python, *_OPTIONS, f"{bubblewrap.CODE}/{first.name}"]
            prefix = bubblewrap.overlay_prefix(base, size) if base else ()
            return Process(line, prefix=prefix, bwrap=True, pass_fds=tuple(fds.values()))

    def _introduce(self, setup: Setup, readable: Sequence[Path], uid: int | None) -> None:
        """Tells the zygote what it is to be, and waits until it is."""
        inside = f"{bubblewrap.CODE}/program.py"
        start = {
            "uid": uid,
            "isolated": not setup.unsafe,
            "program": setup.program and (str(setup.program) if setup.unsafe else inside),
            "preload": list(setup.preload),
            "scratch": self.scratch,
            "age": setup.age,
            "kept": [] if setup.unsafe else bubblewrap.bound_in_scratch(readable),
        }
        try:
            report = self._exchange(start, setup.limits, _START_S)
        except (LostError, TimeoutError) as error:
            raise SandboxError(
                f"the sandbox did not start ({error}): {self.process.stderr() or 'no message'}; "
                "`bwrap` needs root or unprivileged user namespaces: allow them (in a container, "
                "too), or pass unsafe=True / --unsafe to run the code unprotected"
            ) from None
        if report.outcome != "ok":
            raise ValueError(
                f"{setup.program} does not start in the sandbox; it is a self-contained file that "
                f"defines handle(request): mend what its traceback says\n{report.detail}"
            )

    def _exchange(self, frame: dict[str, Any], limits: Limits, within_s: float) -> Report:
        deadline = time.monotonic() + within_s
        content = marshal.dumps(frame)
        self._in_step = False
        self.process.write(_LENGTH.pack(len(content)) + content, deadline)
        fields = _REPORT.unpack(self.process.read(_REPORT.size, deadline))
        outcome, retire, has_value, returncode, cpu_s, wall_s, *sizes = fields
        output = limits.output_bytes
        bounds = (limits.reply_bytes, output, output, _DETAIL_BYTES)
        for size, bound in zip(sizes, bounds, strict=True):
            if size > bound:
                raise LostError(f"it announced {size} bytes where at most {bound} may come")
        value, stdout, stderr, detail = (self.process.read(size, deadline) for size in sizes)
        self._in_step = True
        return Report(
            outcome=outcome.rstrip(b"\0").decode(errors="replace"),
            retire=retire,
            returncode=returncode,
            cpu_s=cpu_s,
            wall_s=wall_s,
            value=value if has_value else None,
            stdout=stdout,
            stderr=stderr,
            detail=detail.decode(errors="replace"),
        )

    def _remove_scratch(self) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _lost(outcome: str, why: str) -> Report:
    return Report(
        outcome=outcome,
        retire=True,
        returncode=-signal.SIGKILL,
        cpu_s=0.0,
        wall_s=0.0,
        value=None,
        stdout=b"",
        stderr=b"",
        detail=f"the sandbox was lost: {why.strip()}",
    )
