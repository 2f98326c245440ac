"""A process that holds a sandbox: pipes that keep deadlines, and a sure end."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_STDERR_BYTES = 1 << 16
_FIRST_INSIDE = re.compile(rb'"child-pid": (\d+)')  # bwrap(1), --info-fd


class LostError(Exception):
    """The sandbox ended, or does not keep to its protocol."""


class Process:
    """bubblewrap, whose child is the zygote, or without protection the zygote itself.

    Args:
        line: the command line.
        prefix: a program that becomes what the line says.
        bwrap: whether it is bubblewrap's, which is then asked for the zygote's number.
        pass_fds: descriptors that it inherits.
        env: its environment; None for this process's.
        cwd: its folder.
    """

    def __init__(
        self,
        line: list[str],
        *,
        prefix: Sequence[str] = (),
        bwrap: bool = False,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        self._stderr = memory_file(b"")
        told, tell = os.pipe()
        if bwrap:
            line = [*prefix, line[0], "--info-fd", str(tell), *line[1:]]
        try:
            fds = (*pass_fds, tell) if bwrap else pass_fds
            self._popen = _popen(line, stderr=self._stderr, pass_fds=fds, env=env, cwd=cwd)
        except BaseException:
            os.close(told)
            os.close(self._stderr)
            raise
        finally:
            os.close(tell)
        assert self._popen.stdin and self._popen.stdout
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout
        for file in (self._stdin, self._stdout):
            os.set_blocking(file.fileno(), False)
        self.pid = self._popen.pid
        self._ended = os.pidfd_open(self.pid)
        with open(told, "rb") as file:  # up to its end, which says that all of it has come
            found = _FIRST_INSIDE.search(file.read())
        self._zygote = _process_fd(int(found[1])) if found else None

    def alive(self) -> bool:
        return self._popen.poll() is None

    def write(self, content: bytes, deadline: float) -> None:
        """Writes all of it.

        Raises:
            LostError: if nobody reads any more.
            TimeoutError: if the deadline (of `time.monotonic`) passes.
        """
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._stdin.fileno(), view) :]
            except BlockingIOError:
                self._wait(self._stdin.fileno(), select.POLLOUT, deadline)
            except BrokenPipeError:
                raise LostError("its first process has ended") from None

    def read(self, size: int, deadline: float) -> bytes:
        """Reads just as many bytes; raises as `write` does."""
        chunks = []
        while size:
            self._wait(self._stdout.fileno(), select.POLLIN, deadline)
            chunk = os.read(self._stdout.fileno(), min(size, 1 << 20))
            if not chunk:
                raise LostError("its first process has ended")
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def stderr(self) -> str:
        """What it complained about."""
        return os.pread(self._stderr, _STDERR_BYTES, 0).decode(errors="replace").strip()

    def end(self, within_s: float) -> None:
        """Lets the zygote end by itself, which it does when its pipe closes, or kills it."""
        self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(within_s)
        # Not left to bubblewrap: it has no capabilities, and its end does not kill another uid.
        if self._zygote is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._zygote, signal.SIGKILL)
            select.select([self._zygote], [], [])  # until all of its namespace has ended
            os.close(self._zygote)
        self._popen.kill()
        self._popen.wait()
        self._stdout.close()
        os.close(self._ended)
        os.close(self._stderr)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._ended, select.POLLIN)
        ready = [found for found, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if not ready:
            raise TimeoutError("its first process does not answer")
        if fd not in ready:
            raise LostError("it has ended")


def memory_file(content: bytes) -> int:
    """A descriptor from which the content can be read."""
    fd = os.memfd_create("sandbox")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _popen(line: list[str], **options: Any) -> subprocess.Popen:
    """Starts the process from a thread that lives as long as this process.

    ``--die-with-parent`` means the thread that started it: a sandbox made in a thread of a pool
    would end with that thread.
    """
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C is for this process alone.
    options |= dict(stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True)
    return _launcher(os.getpid()).submit(subprocess.Popen, line, **options).result()


@functools.cache
def _launcher(pid: int) -> ThreadPoolExecutor:
    """One for each process: threads do not survive a fork."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"sandbox-launcher-{pid}")


def _process_fd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended
        return None
