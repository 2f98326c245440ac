"""The part of the Docker API that workspaces and images need, which Podman serves, too.

Source: Docker Engine API 1.41; docs.docker.com/reference/api/engine.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import struct
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cwm_jax.rl.environment import EnvironmentFailure

_VERSION = "/v1.41"
_ANSWER_S = 120.0  # assumed: of any request but for a running command
_LAYER_S = 1800.0  # assumed: where a large archive is unpacked or a layer is made
_FRAME = struct.Struct(">BxxxI")  # which stream, length
_MOST_LINKS = 8
# Bits of Go's os.FileMode.
_IS_FOLDER, _IS_LINK = 1 << 31, 1 << 27
_IS_SPECIAL = 0x07280000  # devices, pipes, sockets


class EngineError(RuntimeError):
    """The engine refuses, does not answer, or has lost a container."""


class Engine:
    """A container engine behind a Unix socket; any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def create(self, settings: Mapping[str, Any]) -> str:
        """Makes a container, and returns its number."""
        return str(self._asked("POST", "/containers/create", settings)["Id"])

    def start(self, container: str) -> None:
        self._asked("POST", f"/containers/{container}/start")

    def remove(self, container: str) -> None:
        """Ends all of it."""
        self._asked("DELETE", f"/containers/{container}?force=true&v=true")

    def run(self, container: str, argv: Sequence[str]) -> tuple[int, str]:
        """(status, output) of a command that ends soon."""
        execution, stream = self.attach(container, argv)
        try:
            chunks = []
            deadline = time.monotonic() + _ANSWER_S
            while (chunk := stream.read(deadline)) is not None:
                chunks.append(chunk)
        except TimeoutError:
            raise EngineError(f"{argv[0]} did not end within {_ANSWER_S:g} s") from None
        finally:
            stream.close()
        status = self._asked("GET", f"/exec/{execution}/json").get("ExitCode")
        return int(status or 0), b"".join(chunks).decode(errors="replace")

    def is_running(self, execution: str) -> bool:
        """Whether a command that was attached to has not ended."""
        return bool(self._asked("GET", f"/exec/{execution}/json").get("Running"))

    def attach(self, container: str, argv: Sequence[str]) -> tuple[str, ExecStream]:
        """Starts a command, and returns its number and its streams."""
        settings = {"Cmd": list(argv), "Tty": False}
        settings |= {f"Attach{name}": True for name in ("Stdin", "Stdout", "Stderr")}
        execution = str(self._asked("POST", f"/containers/{container}/exec", settings)["Id"])
        return execution, ExecStream(self._path, f"{_VERSION}/exec/{execution}/start")

    def stat(self, container: str, path: str) -> tuple[str, int, int] | None:
        """(path that links lead to, size, mode as Go has it), None if there is nothing there."""
        for _ in range(_MOST_LINKS):
            query = f"/containers/{container}/archive?{urllib.parse.urlencode({'path': path})}"
            status, headers, _ = self._answered("HEAD", query)
            if status == 404:
                self._asked("GET", f"/containers/{container}/json")  # that it is still there
                return None
            if status != 200:
                raise EngineError(f"the engine says {status} to a question for {path}")
            found = json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"]))
            if not found["mode"] & _IS_LINK:
                return path, int(found["size"]), int(found["mode"])
            path = os.path.normpath(os.path.join(os.path.dirname(path), found["linkTarget"]))
        return None

    def get_archive(self, container: str, path: str) -> bytes:
        """A tar of what lies there."""
        query = urllib.parse.urlencode({"path": path})
        status, _, body = self._answered("GET", f"/containers/{container}/archive?{query}")
        if status != 200:
            raise EngineError(f"the engine says {status} to a request for {path}")
        return body

    def put_archive(self, container: str, folder: str, content: bytes | IO[bytes]) -> None:
        """Unpacks a tar, or a file of one, there."""
        query = urllib.parse.urlencode({"path": folder})
        status, _, body = self._answered(
            "PUT",
            f"/containers/{container}/archive?{query}",
            content,
            kind="application/x-tar",
            timeout_s=_LAYER_S,
        )
        if status != 200:
            raise EngineError(f"the engine says {status} to files for {folder}: {body[:500]!r}")

    def image_settings(self, image: str) -> dict[str, Any]:
        """What containers of an image start with; an EngineError if the engine has no such."""
        found = self._asked("GET", f"/images/{urllib.parse.quote(image, safe='/:@')}/json")
        return dict(found.get("Config") or {})

    def commit(self, container: str, image: str, settings: Mapping[str, Any]) -> None:
        """Makes an image, ``NAME:TAG``, of a container's files."""
        name, _, tag = image.rpartition(":")
        query = urllib.parse.urlencode({"container": container, "repo": name, "tag": tag})
        self._asked("POST", f"/commit?{query}", settings, timeout_s=_LAYER_S)

    def _asked(
        self,
        method: str,
        query: str,
        content: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = _ANSWER_S,
    ) -> dict[str, Any]:
        body = None if content is None else json.dumps(content).encode()
        status, _, answer = self._answered(
            method, query, body, kind="application/json", timeout_s=timeout_s
        )
        if not 200 <= status < 300 and status != 304:  # 304: it is started already
            text = answer[:500].decode(errors="replace").strip()
            raise EngineError(f"the engine says {status} to {method} {query}: {text}")
        try:
            return json.loads(answer) if answer.strip() else {}
        except ValueError:
            raise EngineError(f"the engine's answer to {method} {query} is no JSON") from None

    def _answered(
        self,
        method: str,
        query: str,
        body: bytes | IO[bytes] | None = None,
        *,
        kind: str = "",
        timeout_s: float = _ANSWER_S,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = _UnixConnection(self._path, timeout_s)
        try:
            headers = {"Content-Type": kind} if body is not None else {}
            if body is not None and not isinstance(body, bytes):  # else it goes in chunks
                headers["Content-Length"] = str(os.fstat(body.fileno()).st_size)
            connection.request(method, _VERSION + query, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the engine at {self._path} does not answer: {error}") from error
        finally:
            connection.close()


class ExecStream:
    """Standard input, and output with errors, of a command inside."""

    def __init__(self, path: str, query: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        body = b'{"Detach": false, "Tty": false}'
        head = f"POST {query} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            self._socket.settimeout(_ANSWER_S)
            self._socket.connect(path)
            self._socket.sendall(head.encode() + body)
            self._read_head()
        except OSError as error:
            self.close()
            raise EngineError(f"a command inside does not start: {error}") from error
        except BaseException:
            self.close()
            raise

    def send(self, content: bytes, deadline: float) -> None:
        """Writes to standard input.

        Raises:
            EngineError: the command has ended, or the engine.
            TimeoutError: nobody reads before the deadline (of `time.monotonic`).
        """
        self._set_deadline(deadline)
        try:
            self._socket.sendall(content)
        except TimeoutError:
            raise
        except OSError as error:
            raise EngineError(f"the stream to a command broke: {error}") from error

    def read(self, deadline: float) -> bytes | None:
        """The next output; None at its end. Raises as `send`."""
        while True:
            if len(self._buffer) >= _FRAME.size:
                _, length = _FRAME.unpack_from(self._buffer)
                end = _FRAME.size + length
                if len(self._buffer) >= end:
                    content, self._buffer = self._buffer[_FRAME.size : end], self._buffer[end:]
                    return content
            self._set_deadline(deadline)
            if not self._receive():
                return None

    def close(self) -> None:
        self._socket.close()

    def _set_deadline(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)

    def _receive(self) -> bool:
        try:
            chunk = self._socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise EngineError(f"the stream from a command broke: {error}") from error
        self._buffer += chunk
        return bool(chunk)

    def _read_head(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                raise EngineError("the engine hung up instead of starting a command")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].split(b" ")[1:2]
        if status not in ([b"101"], [b"200"]):
            raise EngineError(f"the engine does not start a command: {head[:500]!r}")


def find_engine() -> Engine:
    """The engine of this machine, by its usual sockets.

    Raises:
        EnvironmentFailure: there is none.
    """
    places = [
        Path("/var/run/docker.sock"),
        Path("/run/podman/podman.sock"),
        Path(f"/run/user/{os.getuid()}/podman/podman.sock"),
    ]
    for place in places:
        if place.is_socket():
            return Engine(place)
    raise EnvironmentFailure(
        f"this task runs in a container, and there is no engine at {', '.join(map(str, places))}; "
        "start Docker or Podman (`podman system service`), or take tasks without an image"
    )


def is_folder(mode: int) -> bool:
    return bool(mode & _IS_FOLDER)


def is_regular(mode: int) -> bool:
    return not mode & (_IS_FOLDER | _IS_LINK | _IS_SPECIAL)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("engine", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
