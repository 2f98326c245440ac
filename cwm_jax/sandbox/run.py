"""Programs that run in a sandbox of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from cwm_jax.sandbox.bubblewrap import interpreter
from cwm_jax.sandbox.limits import Limits
from cwm_jax.sandbox.outcome import Completed, Outcome
from cwm_jax.sandbox.supervisor import Setup, Supervisor


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    readable: Sequence[Path] = (),
    limits: Limits | None = None,
    unsafe: bool = False,
) -> Completed:
    """Runs one program in a sandbox of its own, in the scratch folder.

    Args:
        argv: the command; ``python`` as its first word is this interpreter. Another executable must
            be in ``readable``, with its libraries.
        stdin: what it reads.
        files: contents by path relative to the scratch folder.
        readable: files and folders, bound read-only at the same place.
        limits: of the run.
        unsafe: as for `Worker`.

    Raises:
        SandboxError: if the sandbox cannot be had.
        ValueError: if the command or a path is not usable.
    """
    limits, files = limits or Limits(), dict(files or {})
    check_files(files, limits.scratch_bytes)
    if not argv:
        raise ValueError("argv is empty; it is a command and its arguments: name a command")
    line = [interpreter() if argv[0] == "python" else argv[0], *argv[1:]]
    supervisor = Supervisor(Setup(program=None, readable=readable, limits=limits, unsafe=unsafe))
    try:
        report = supervisor.call({"argv": line, "files": files, "stdin": stdin}, limits)
    finally:
        supervisor.close()
    if report.outcome == "not started":
        raise ValueError(
            f"{argv[0]!r} did not start in the sandbox: {report.detail}; only `python` and what "
            "`readable` names exist there: name the executable and its libraries"
        )
    return Completed(
        outcome=Outcome(report.outcome),
        returncode=report.returncode,
        stdout=report.stdout,
        stderr=report.stderr,
        cpu_s=report.cpu_s,
        wall_s=report.wall_s,
        detail=report.detail,
    )


def check_files(files: Mapping[str, bytes], scratch_bytes: int) -> None:
    """Raises ValueError for files that cannot lie in a scratch folder of that size."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise ValueError(
                f"files has {name!r}; its paths are relative to the scratch folder and stay in it: "
                "give another path"
            )
    size = sum(map(len, files.values()))
    if size > scratch_bytes:
        raise ValueError(
            f"files hold {size} bytes and the scratch folder {scratch_bytes}: raise "
            "limits.scratch_bytes"
        )
