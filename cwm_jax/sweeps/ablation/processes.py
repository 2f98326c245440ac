"""Many commands, some at once, each on its share of the processor's cores."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_POLL_S = 0.1
_SHOWN_LINES = 12  # of the log of a job that failed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A command whose output goes to a file.

    Attributes:
        name: in what is printed.
        command: program and arguments.
        shown: the command as a user would type it.
        log: appended to.
    """

    name: str
    command: tuple[str, ...]
    shown: str
    log: Path


def run_jobs(
    jobs: Sequence[Job], *, parallel: int, note: Callable[[str], None] = print
) -> dict[str, int]:
    """Runs all, whatever becomes of each; exit statuses by name.

    An exception here, Ctrl-C too, asks those that run to stop (SIGTERM), waits for them and goes on
    its way; a second one kills them.

    Args:
        jobs: in the order in which they are begun.
        parallel: how many at once.
        note: is told what begins and ends.
    """
    waiting, found = list(reversed(jobs)), {}
    free = _shares(parallel)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(), free.pop(0), parallel))
                note(f"{running[-1].job.name}: {running[-1].job.shown} > {running[-1].job.log}")
            time.sleep(_POLL_S)
            for done in [r for r in running if r.process.poll() is not None]:
                running.remove(done)
                free.append(done.cores)
                found[done.job.name] = done.process.returncode
                note(f"[{len(found)}/{len(jobs)}] {_describe(done)}")
    finally:
        _stop(running)
    return found


def cores_of_this_process() -> list[int]:
    """Those it may use; where the system does not say, all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen
    cores: list[int]
    started: float


def _shares(parallel: int) -> list[list[int]]:
    """Cores for each of so many jobs; with more jobs than cores, several have the same one."""
    cores = cores_of_this_process()
    if parallel > len(cores):
        return [[cores[n % len(cores)]] for n in range(parallel)]
    bounds = [n * len(cores) // parallel for n in range(parallel + 1)]
    return [cores[bounds[n] : bounds[n + 1]] for n in range(parallel)]


def _start(job: Job, cores: list[int], parallel: int) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log, _on_cores(cores):
        log.write(f"$ {job.shown}\n")
        log.flush()
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(len(cores), parallel),
            start_new_session=True,  # a terminal's Ctrl-C is ours alone: two would spoil their save
        )
    return _Running(job=job, process=process, cores=cores, started=time.monotonic())


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """A process begun inside inherits this affinity, by which JAX counts its threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _environment(num_cores: int, parallel: int) -> Mapping[str, str]:
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    values = dict(os.environ) | dict.fromkeys(threads, str(num_cores))
    share = (
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "XLA_CLIENT_MEM_FRACTION",
    )  # JAX refuses both at once
    if parallel > 1 and not any(name in values for name in share):
        # One GPU for all: JAX would give three quarters of its memory to the first.
        values[share[0]] = f"{0.9 / parallel:.3f}"
    return values


def _describe(done: _Running) -> str:
    status, seconds = done.process.returncode, time.monotonic() - done.started
    if status == 0:
        return f"{done.job.name}: {seconds:.0f} s"
    text = done.job.log.read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(f"  | {line}" for line in text.splitlines()[-_SHOWN_LINES:])
    return f"{done.job.name}: FAILED with {status} after {seconds:.0f} s\n{tail}"


def _stop(running: Sequence[_Running]) -> None:
    try:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
    except BaseException:
        for one in running:
            one.process.kill()
        raise


def as_typed(command: Sequence[str]) -> str:
    """For a shell."""
    return shlex.join(command)
