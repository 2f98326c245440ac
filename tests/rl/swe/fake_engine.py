"""A container engine on a Unix socket that runs commands as plain processes, for the tests' own.

It knows one image, whose content is a folder; making a container puts a fresh copy of it in place.
What would end all processes of a container ends those that were started here, and nothing else.
"""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socketserver
import struct
import subprocess
import tarfile
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path

IMAGE = "local/tests:1"
END_ALL = ["/bin/sh", "-c", "kill -9 -1"]
KNOWN = ("/bin/bash", "mkdir")  # nothing else is run
IS_FOLDER, IS_LINK, IS_PIPE = 1 << 31, 1 << 27, 1 << 25  # Go's os.FileMode


class FakeEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """``image``: content; ``root``: where it lies in a container; ``socket``: a path."""

    daemon_threads = True

    def __init__(self, socket: Path, image: Path, root: Path):
        super().__init__(str(socket), Handler)
        self.image, self.root, self.home = image, root, socket.parent
        self.containers: dict[str, dict] = {}
        self.removed: list[str] = []
        self.commands: dict[str, list[str]] = {}
        self.codes: dict[str, int] = {}
        self.processes: list[subprocess.Popen] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self):
        self.end_all()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def end_all(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes = []


class Handler(BaseHTTPRequestHandler):
    server: FakeEngine
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def address_string(self):
        return "local"

    def do_POST(self):
        engine, content = self.server, self.content()
        if self.path == "/v1.41/containers/create":
            if content["Image"] != IMAGE:
                return self.answer(404, {"message": f"No such image: {content['Image']}"})
            number = f"c{len(engine.containers) + len(engine.removed)}"
            engine.containers[number] = content
            shutil.rmtree(engine.root, ignore_errors=True)
            shutil.copytree(engine.image, engine.root, symlinks=True)
            return self.answer(201, {"Id": number})
        if found := re.fullmatch(r"/v1\.41/exec/(\w+)/start", self.path):
            return self.execute(found[1])
        found = re.fullmatch(r"/v1\.41/containers/(\w+)/(start|exec)", self.path)
        assert found, self.path
        if found[1] not in engine.containers:
            return self.answer(404, {"message": f"No such container: {found[1]}"})
        if found[2] == "start":
            return self.answer(204)
        number = f"e{len(engine.commands)}"
        engine.commands[number] = content["Cmd"]
        return self.answer(201, {"Id": number})

    def do_GET(self):
        if found := re.fullmatch(r"/v1\.41/exec/(\w+)/json", self.path):
            code = self.server.codes.get(found[1])
            return self.answer(200, {"ExitCode": code, "Running": code is None})
        if found := re.fullmatch(r"/v1\.41/containers/(\w+)/json", self.path):
            known = found[1] in self.server.containers
            return self.answer(200 if known else 404, {"Id": found[1]})
        path = self.archive_path()
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            archive.add(path, path.name)
        return self.answer(200, body=made.getvalue())

    def do_HEAD(self):
        path = self.archive_path()
        if path is None or not os.path.lexists(path):
            return self.answer(404)
        mode = IS_FOLDER if path.is_dir() else IS_PIPE if path.is_fifo() else 0o600
        found = {"name": path.name, "size": path.lstat().st_size, "mode": mode, "linkTarget": ""}
        if path.is_symlink():
            found |= {"mode": IS_LINK, "linkTarget": os.readlink(path)}
        encoded = base64.b64encode(json.dumps(found).encode()).decode()
        return self.answer(200, headers={"X-Docker-Container-Path-Stat": encoded})

    def do_PUT(self):
        folder = self.archive_path()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            archive.extractall(folder, filter="data")
        return self.answer(200)

    def do_DELETE(self):
        found = re.match(r"/v1\.41/containers/(\w+)\?force=true&v=true", self.path)
        if self.server.containers.pop(found[1], None) is None:
            return self.answer(404, {"message": f"No such container: {found[1]}"})
        self.server.end_all()
        self.server.removed.append(found[1])
        return self.answer(204)

    def execute(self, number):
        argv = self.server.commands[number]
        self.send_response_only(101)
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        self.close_connection = True
        if argv == END_ALL:
            self.server.end_all()
            self.server.codes[number] = 137
            return
        assert argv[0] in KNOWN, argv
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            cwd="/",
            env={"HOME": str(self.server.home), "PATH": os.environ["PATH"]},
        )
        self.server.processes.append(process)
        lock = threading.Lock()
        pumps = [
            threading.Thread(target=self.pump, args=(file, kind, lock), daemon=True)
            for file, kind in ((process.stdout, 1), (process.stderr, 2))
        ]
        for pump in pumps:
            pump.start()
        threading.Thread(target=self.feed, args=(process,), daemon=True).start()
        self.server.codes[number] = process.wait()
        for pump in pumps:
            pump.join()

    def pump(self, file, kind, lock):
        with file:
            while chunk := file.read1(4096):
                with lock:
                    try:
                        self.connection.sendall(struct.pack(">BxxxI", kind, len(chunk)) + chunk)
                    except OSError:
                        return

    def feed(self, process):
        with process.stdin:
            try:
                while chunk := self.connection.recv(4096):
                    process.stdin.write(chunk)
                    process.stdin.flush()
            except (OSError, ValueError):
                pass

    def content(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(body) if body else {}

    def archive_path(self):
        found = re.match(r"/v1\.41/containers/(\w+)/archive\?(.*)", self.path)
        if found[1] not in self.server.containers:
            return None
        return Path(urllib.parse.parse_qs(found[2])["path"][0])

    def answer(self, status, content=None, *, body=b"", headers=None):
        body = json.dumps(content).encode() if content is not None else body
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)
