"""The package index, and nothing else of a network, for what is built in a sandbox.

The sandbox has no network. A socket file is bound into it, behind which a proxy of the host's
connects to the index's hosts alone; inside, a port of the sandbox's own leads there. pip's
configuration of this machine holds inside, too: indexes, folders of files, constraints and
certificates, of which those that are files are bound read-only.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import shlex
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

PORT = 3128  # inside; of proxies by custom
_FORWARDER = Path(__file__).with_name("forwarder_inside.py")
_HEAD_BYTES, _CHUNK_BYTES = 1 << 14, 1 << 16
_CONNECT_S, _IDLE_S = 30.0, 300.0  # assumed
# What of pip's configuration is handed in, under pip's own names (pip's user guide, configuration).
_OPTIONS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "constraint",
    "cert",
    "trusted-host",
    "timeout",
    "retries",
    "default-timeout",
)
_OF_PIP = (
    "from pip._internal.models.index import PyPI as p; print(p.simple_url, p.file_storage_domain)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Where packages come from.

    Attributes:
        hosts: that may be connected to, by TLS.
        options: of pip, by name.
        readable: files and folders that they name.
    """

    hosts: tuple[str, ...]
    options: Mapping[str, str]
    readable: tuple[Path, ...]


def configured_index(more_hosts: Sequence[str] = ()) -> Index:
    """What this machine's pip uses.

    Args:
        more_hosts: that packages' files come from, where an index of one's own names others.

    Raises:
        ValueError: pip cannot say, or an index is not asked by TLS.
    """
    options = {name: value for name, value in _configured().items() if name in _OPTIONS}
    default, files_host = _printed("-c", _OF_PIP).split()
    index = options.setdefault("index-url", default)
    hosts = {*more_hosts} | ({files_host} if index == default else set())
    readable = []
    for text in f"{index} {options.get('extra-index-url', '')}".split():
        url = urlsplit(text)
        if url.scheme == "https" and url.hostname:
            hosts.add(url.hostname)
        elif url.scheme == "file":  # its pages name files beside it
            readable.append(Path(unquote(url.path)).parent)
        else:
            raise ValueError(
                f"the index {text} is asked without TLS; expected https or a file: change pip's "
                "configuration"
            )
    paths = " ".join(options.get(name, "") for name in ("find-links", "constraint", "cert"))
    readable += [Path(text.removeprefix("file://")) for text in paths.split() if "/" in text]
    found = tuple(path for path in readable if path.is_absolute() and path.exists())
    return Index(hosts=tuple(sorted(hosts)), options=options, readable=found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """What a shell is made with that may use an index.

    Attributes:
        readable: as of `Shell`.
        start: commands for its start.
        refused: hosts that were asked for and are none of the index's; grows.
    """

    readable: tuple[Path, ...]
    start: str
    refused: list[str]


@contextlib.contextmanager
def index_access(index: Index) -> Iterator[Access]:
    """Serves an index as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        os.chmod(folder, 0o711)
        place = Path(folder, "socket")
        with _Proxy(str(place), _Connection) as proxy:
            proxy.hosts = frozenset(index.hosts)
            os.chmod(place, 0o666)
            thread = threading.Thread(target=proxy.serve_forever, daemon=True)
            thread.start()
            try:
                yield Access(
                    readable=(place, _FORWARDER, *index.readable),
                    start=_start(index, place),
                    refused=proxy.refused,
                )
            finally:
                proxy.shutdown()
                thread.join()


def _start(index: Index, place: Path) -> str:
    proxy = f"http://127.0.0.1:{PORT}"
    names = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    names |= {"PIP_NO_CACHE_DIR": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    for name, value in index.options.items():
        names[f"PIP_{name.upper().replace('-', '_')}"] = value
    if cert := index.options.get("cert"):
        names |= {"SSL_CERT_FILE": cert, "REQUESTS_CA_BUNDLE": cert}
    exports = (f"export {name}={shlex.quote(value)}" for name, value in names.items())
    forwarder = shlex.join(["python", "-I", "-S", str(_FORWARDER), str(place), str(PORT)])
    return "\n".join([*exports, forwarder])


def _configured() -> dict[str, str]:
    """Each line is ``level.name='value'``; later levels hold over those before."""
    found = {}
    for line in _printed("-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        with contextlib.suppress(ValueError, SyntaxError):
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def _printed(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"pip of {sys.executable} does not say where packages come from: "
            f"{done.stderr.strip()[-300:]}; install pip there"
        )
    return done.stdout


class _Proxy(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    hosts: frozenset[str] = frozenset()

    def __init__(self, *arguments) -> None:
        self.refused: list[str] = []
        super().__init__(*arguments)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error of ours."""


class _Connection(socketserver.BaseRequestHandler):
    server: _Proxy

    def handle(self) -> None:
        """``CONNECT host:443`` to a host of the index. Source: RFC 9110, section 9.3.6."""
        self.request.settimeout(_CONNECT_S)
        head, rest = self._head()
        words = head.split(b"\r\n", 1)[0].split()
        target = words[1].decode(errors="replace") if len(words) == 3 else ""
        host, _, port = target.rpartition(":")
        if words[:1] != [b"CONNECT"] or host not in self.server.hosts or port != "443":
            self.server.refused.append(target)
            self.request.sendall(b"HTTP/1.1 403 Not of the package index\r\n\r\n")
            return
        with socket.create_connection((host, 443), _CONNECT_S) as outer:
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            outer.sendall(rest)
            _join(self.request, outer)

    def _head(self) -> tuple[bytes, bytes]:
        found = b""
        while b"\r\n\r\n" not in found:
            more = self.request.recv(_CHUNK_BYTES)
            if not more or len(found) > _HEAD_BYTES:
                break
            found += more
        head, _, rest = found.partition(b"\r\n\r\n")
        return head, rest


def _join(one: socket.socket, other: socket.socket) -> None:
    """Copies both ways until both ends have ended, or one says nothing for long."""
    for end in (one, other):
        end.settimeout(_IDLE_S)
    back = threading.Thread(target=_copy, args=(other, one), daemon=True)
    back.start()
    _copy(one, other)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(_CHUNK_BYTES):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # for the other way, too
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
