"""An OpenAI-compatible server whose answers are a function of prompt and seed."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "fake"


class FakeServer:
    """Attributes may be changed while it runs.

    ``refuse(number, path, body)`` gives (status, object, headers), ``"drop"``, or None to answer;
    ``answered`` is called after the n-th answer.
    """

    def __init__(self):
        self.seen: list[tuple[str, dict]] = []
        self.refuse = lambda number, path, body: None
        self.answered = lambda number: None
        self.models = [{"id": MODEL}]
        self.url = ""
        self._lock = threading.Lock()

    def number_of(self, path: str, body: dict) -> int:
        with self._lock:
            self.seen.append((path, body))
            return len(self.seen)

    def reply(self, number: int, path: str, body: dict):
        refused = self.refuse(number, path, body)
        if refused is not None:
            return refused
        text = answer_to(json.dumps(body.get("messages") or body["prompt"]), body.get("seed"))
        usage = {"prompt_tokens": 10, "completion_tokens": 1 + len(text) % 7}
        if path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
        else:
            choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": usage}, {}


def answer_to(prompt: str, seed: int | None) -> str:
    """The sum of its first two numbers, now and then one more."""
    a, b = map(int, re.findall(r"\d+", prompt)[:2])
    digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
    return f"I think {a + b + (digest[0] % 3 == 0)}{'!' * (digest[1] % 9)}"


@contextlib.contextmanager
def fake_server():
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            asked = not self.path.endswith("/models")
            number = fake.number_of(self.path, body) if asked else 0
            listed = 200, {"data": fake.models}, {}
            reply = fake.reply(number, self.path, body) if asked else listed
            if reply == "drop":
                self.connection.close()
                return
            status, answer, headers = reply
            content = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # the client was killed
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
            if asked:
                fake.answered(number)

        do_GET = do_POST  # noqa: N815 (the base class's names)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError):
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
