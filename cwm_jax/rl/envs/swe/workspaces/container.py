"""A workspace in a container, by Docker or Podman.

The container has no network, no capabilities and bounded memory and processes. Its first process
only waits: when all others are killed, an empty machine with its files is left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import posixpath
import re
import secrets
import shlex
import tarfile
import time
from collections.abc import Iterator
from typing import Any

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.workspaces.engine import (
    Engine,
    EngineError,
    find_engine,
    is_folder,
    is_regular,
)
from cwm_jax.rl.envs.swe.workspaces.protocol import SETTINGS
from cwm_jax.sandbox import ShellReply

_LIFETIME_S = 4 * 3600  # assumed: a container that nobody removed ends by itself
_START_S = 120.0  # Source: Meta's wait for a container
_OUTPUT_BYTES = 480 << 10  # Source: Meta's sessions
_PROCESSES = 4096  # assumed
_LOOK_S = 0.5  # assumed: between two looks at whether a silent bash has ended
_NANO_CPUS = 4_000_000_000  # Source: Meta's containers, up to four processors
_SHELL = ("/bin/bash", "--noprofile", "--norc")
# Afterwards nothing after the commit can be found. Source: Meta's, for solving.
_PREPARE = """git config --global --add safe.directory {root} &&
for remote in $(git remote); do git remote remove "$remote"; done &&
git checkout -q --detach HEAD &&
for ref in $(git for-each-ref --format='%(refname)'); do git update-ref -d "$ref"; done &&
rm -f .git/FETCH_HEAD .git/ORIG_HEAD && git reflog expire --expire=now --all &&
git gc -q --prune=now"""


class ContainerWorkspace:
    """A container of an image that has a repository checked out; see `Workspace`.

    Args:
        image: reference of one that the engine has; none is pulled.
        root: of the checkout inside.
        memory_bytes: of the container.
        engine: that runs it; None looks for a socket, see `find_engine`.

    Raises:
        EnvironmentFailure: there is no engine, no such image, or no repository at the root.
    """

    def __init__(
        self, image: str, root: str, *, memory_bytes: int, engine: Engine | None = None
    ) -> None:
        self.root = root
        self._engine = engine or find_engine()
        self._session: _Session | None = None
        self._id = ""
        try:
            with _failures():
                self._id = self._engine.create(_settings(image, memory_bytes))
                self._engine.start(self._id)
            reply = self.run(_PREPARE.format(root=shlex.quote(root)), _START_S)
            if reply.outcome != "ok" or reply.exit_code:
                raise EnvironmentFailure(
                    f"{image}: the repository at {root} cannot be prepared: {reply.output}"
                )
        except BaseException:
            self.close()
            raise

    def run(self, command: str, timeout_s: float) -> ShellReply:
        with _failures():
            self._session = self._session or _Session(self._engine, self._id, self.root)
            reply = self._session.run(command, timeout_s)
            if reply.outcome != "ok":
                self._end_session()
                self._engine.run(self._id, ["/bin/sh", "-c", "kill -9 -1"])
        return reply

    def read(self, path: str, max_bytes: int) -> bytes:
        with _failures():
            found = self._engine.stat(self._id, path)
            if found is None:
                raise _error(errno.ENOENT, path)
            place, size, mode = found
            if not is_regular(mode):
                raise _error(errno.EISDIR if is_folder(mode) else errno.EINVAL, path)
            if size > max_bytes:
                raise _error(errno.EFBIG, path)
            content = self._engine.get_archive(self._id, place)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            entry = archive.next()
            file = archive.extractfile(entry) if entry else None
            if file is None:
                raise _error(errno.EINVAL, path)
            return file.read(max_bytes)

    def write(self, path: str, content: bytes) -> None:
        folder, name = posixpath.split(path)
        with _failures():
            found = self._engine.stat(self._id, path)
            if found is not None and not is_regular(found[2]):
                raise _error(errno.EISDIR if is_folder(found[2]) else errno.EINVAL, path)
            if found is not None:
                folder, name = posixpath.split(found[0])
            code, output = self._engine.run(self._id, ["mkdir", "-p", "--", folder])
            if code:
                raise NotADirectoryError(errno.ENOTDIR, output.strip(), path)
            mode = 0o777 & found[2] if found is not None else 0o644
            self._engine.put_archive(self._id, folder, _tar(name, content, mode))

    def close(self) -> None:
        self._end_session()
        if self._id:
            with contextlib.suppress(EngineError):  # it ends by itself after its lifetime
                self._engine.remove(self._id)
        self._id = ""

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


class _Session:
    """One bash, which reads from us and whose commands read nothing."""

    def __init__(self, engine: Engine, container: str, root: str) -> None:
        self._engine = engine
        self._id, self._stream = engine.attach(container, _SHELL)
        reply = self.run(f"exec 2>&1; {SETTINGS}; cd {shlex.quote(root)}", _START_S)
        if reply.outcome != "ok" or reply.exit_code:
            self.close()
            raise EngineError(f"a shell does not start in {root}: {reply.detail} {reply.output}")

    def run(self, command: str, timeout_s: float) -> ShellReply:
        """The command is one quoted word, whatever is in it; a random word says that it is done."""
        deadline = time.monotonic() + timeout_s
        word = secrets.token_hex(16).encode()
        quoted = shlex.quote(command.replace("\0", ""))
        lines = f"\\eval -- {quoted} </dev/null\n\\builtin printf '%s %d\\n' "
        said = re.compile(word + rb" (\d+)\n")
        output = b""
        try:
            self._stream.send(lines.encode(errors="replace") + word + b' "$?"\n', deadline)
            while (chunk := self._next(deadline)) is not None:
                output += chunk
                if found := said.search(output, max(0, len(output) - len(chunk) - 64)):
                    text = output[: found.start()].decode(errors="replace")
                    return _reply(text, int(found[1]), "ok")
                if len(output) > _OUTPUT_BYTES:
                    return _reply(
                        "", None, "too_long", f"more than {_OUTPUT_BYTES} bytes of output"
                    )
        except TimeoutError:
            text = output.decode(errors="replace")
            return _reply(text, None, "timeout", f"more than {timeout_s:g} s")
        return _reply(output.decode(errors="replace"), None, "exit", "bash ended")

    def close(self) -> None:
        self._stream.close()

    def _next(self, deadline: float) -> bytes | None:
        """More output; None at its end, or at bash's: its jobs may hold the stream open."""
        while True:
            try:
                return self._stream.read(min(deadline, time.monotonic() + _LOOK_S))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise
                if not self._engine.is_running(self._id):
                    return None


def _settings(image: str, memory_bytes: int) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": ["sleep"],
        "Cmd": [str(_LIFETIME_S)],
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "NanoCpus": _NANO_CPUS,
            "PidsLimit": _PROCESSES,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
        },
    }


def _reply(output: str, code: int | None, outcome: Any, detail: str = "") -> ShellReply:
    return ShellReply(output=output, exit_code=code, outcome=outcome, detail=detail)


def _tar(name: str, content: bytes, mode: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), mode
        archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise EnvironmentFailure(f"the container failed: {error}") from error
