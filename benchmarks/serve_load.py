"""Load on a real server: streams, and clients that cancel, disconnect and send what is no request.

    python -m benchmarks.serve_load --model runs/quickstart/export
    python -m benchmarks.serve_load  # a tiny model with random weights

Starts ``python -m cwm_jax serve`` as a process of its own. The report has latencies of the requests
that were streamed to their end, counts by outcome, and what must hold afterwards: no row, page or
waiting request is left, memory does not grow, every admitted request was answered or cancelled.
Ends with 1 if any of that fails.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx

MAX_BODY_BYTES = 500_000
MAX_GROWTH = 0.05  # of resident memory from the first third to the last
WORDS = ("def", "return", "value", "for", "in", "range", "print", "total", "items", "while")
MALFORMED = (
    b"{",
    b'{"prompt": "\xff"}',
    b'{"prompt": null}',
    b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "temperature": "hot"}',
    b'{"prompt": "x", "no_such_field": 1}',
    b'{"prompt": [1, "a"]}',
    b'{"messages": []}',
)
# Kinds of clients, and how often each comes.
CLIENTS = {
    "stream": 12,
    "chat stream": 6,
    "whole": 3,
    "cancel": 4,  # leaves after a few events
    "disconnect": 2,  # leaves before the answer
    "too large": 2,
    "too long": 1,
    "malformed": 3,
}


@dataclasses.dataclass
class Seen:
    """What the clients saw."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    first_token_s: list[float] = dataclasses.field(default_factory=list)
    token_s: list[float] = dataclasses.field(default_factory=list)
    total_s: list[float] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    rss_bytes: list[int] = dataclasses.field(default_factory=list)


class Client:
    """One of many, one request after another, of a random kind."""

    def __init__(self, http: httpx.AsyncClient, seen: Seen, seed: int, max_tokens: int) -> None:
        self._http, self._seen, self._rng = http, seen, random.Random(seed)
        self._max_tokens = max_tokens

    async def run(self, end_s: float) -> None:
        kinds, weights = [*CLIENTS], [*CLIENTS.values()]
        while time.monotonic() < end_s:
            (kind,) = self._rng.choices(kinds, weights)
            try:
                await getattr(self, f"_{kind.replace(' ', '_')}")(kind)
            except httpx.HTTPError as error:
                self._problem(kind, repr(error))

    async def _stream(self, kind: str) -> None:
        await self._streamed(kind, "/v1/completions", {"prompt": self._text()})

    async def _chat_stream(self, kind: str) -> None:
        messages = [{"role": "user", "content": self._text()}]
        await self._streamed(kind, "/v1/chat/completions", {"messages": messages})

    async def _streamed(self, kind: str, path: str, prompt: dict) -> None:
        body = self._body(prompt) | {"stream": True, "stream_options": {"include_usage": True}}
        start_s, first_s, usage, is_whole = time.monotonic(), None, None, False
        async with self._http.stream("POST", path, json=body) as reply:
            if reply.status_code == 429:
                self._seen.counts[f"{kind}: 429"] += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))
                return
            async for line in reply.aiter_lines():
                is_whole = is_whole or line == "data: [DONE]"
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    usage = chunk.get("usage") or usage
                    if first_s is None and _has_token(chunk):
                        first_s = time.monotonic()
        end_s = time.monotonic()
        if reply.status_code != 200 or not is_whole or usage is None or first_s is None:
            self._problem(kind, f"{reply.status_code}, whole: {is_whole}")
            return
        self._seen.counts[f"{kind}: answered"] += 1
        self._seen.first_token_s.append(first_s - start_s)
        self._seen.total_s.append(end_s - start_s)
        if (count := usage["completion_tokens"]) > 1:
            self._seen.token_s.append((end_s - first_s) / (count - 1))

    async def _whole(self, kind: str) -> None:
        body = self._body({"prompt": [self._text(), self._text()]})
        self._expect(kind, await self._http.post("/v1/completions", json=body), 200, 429)

    async def _cancel(self, kind: str) -> None:
        body = self._body({"prompt": self._text()}) | {"stream": True}
        async with self._http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.aiter_lines()
            for _ in range(self._rng.randint(1, 4)):
                await anext(lines, None)
        self._seen.counts[f"{kind}: left"] += 1

    async def _disconnect(self, kind: str) -> None:
        body = self._body({"prompt": self._text()})
        with contextlib.suppress(httpx.TimeoutException):
            timeout = httpx.Timeout(30, read=self._rng.uniform(0.01, 0.5))
            await self._http.post("/v1/completions", json=body, timeout=timeout)
        self._seen.counts[f"{kind}: left"] += 1

    async def _too_large(self, kind: str) -> None:
        body = {"prompt": "x" * self._rng.randint(MAX_BODY_BYTES, 10 * MAX_BODY_BYTES)}
        self._expect(kind, await self._http.post("/v1/completions", json=body), 413)

    async def _too_long(self, kind: str) -> None:
        body = {"prompt": [1] * 40_000}
        self._expect(kind, await self._http.post("/v1/completions", json=body), 400)

    async def _malformed(self, kind: str) -> None:
        headers = {"Content-Type": "application/json"}
        body = self._rng.choice(MALFORMED)
        reply = await self._http.post("/v1/completions", content=body, headers=headers)
        self._expect(kind, reply, 400)

    def _text(self) -> str:
        """Half of them begin alike, so that prefixes are found."""
        start = "def main():\n    " * 4 if self._rng.random() < 0.5 else ""
        return start + " ".join(self._rng.choices(WORDS, k=self._rng.randint(1, 30)))

    def _body(self, prompt: dict) -> dict:
        options = {"max_tokens": self._rng.randint(1, self._max_tokens), "ignore_eos": True}
        sampling = self._rng.choice([{"temperature": 0}, {"top_p": 0.9}, {"top_k": 5, "seed": 1}])
        return prompt | options | sampling

    def _expect(self, kind: str, reply: httpx.Response, *statuses: int) -> None:
        if reply.status_code not in statuses:
            self._problem(kind, f"{reply.status_code}: {reply.text[:200]}")
        self._seen.counts[f"{kind}: {reply.status_code}"] += 1

    def _problem(self, kind: str, text: str) -> None:
        self._seen.counts[f"{kind}: problem"] += 1
        self._seen.problems.append(f"{kind}: {text}")


def _has_token(chunk: dict) -> bool:
    """Not the opening of a chat, and not the last chunk of all."""
    choice = next(iter(chunk.get("choices", [])), {})
    return bool(
        choice.get("token_ids") or set(choice.get("delta", {})) - {"role"} - {"content"}
    ) or (bool(choice.get("delta", {}).get("content")) or choice.get("finish_reason") is not None)


def make_tiny(folder: Path) -> Path:
    """A small random model with a tokenizer of this file's text."""
    import jax

    from convert import save_hf
    from cwm_jax.config import ModelConfig
    from cwm_jax.model.transformer import init
    from cwm_jax.tokenizer import train_tokenizer

    config = ModelConfig(
        vocab_size=768,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=("full_attention", "sliding_attention") * 2,
        sliding_window=32,
        max_position_embeddings=1024,
    )
    tokenizer = train_tokenizer([Path(__file__).read_text()], config.vocab_size)
    save_hf(folder, config, init(config, jax.random.key(0)), tokenizer)
    return folder


@contextlib.contextmanager
def server(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """Process id and URL of a server that has compiled everything."""
    options = ["--max-rows", arguments.max_rows, "--max-waiting", arguments.max_waiting]
    options += ["--max-length", arguments.max_length, "--max-body-bytes", MAX_BODY_BYTES]
    command = [sys.executable, "-m", "cwm_jax", "serve", folder, "--port", 0, *options]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            break
    else:
        raise RuntimeError("".join(said))
    try:
        yield process.pid, found[1]
        process.terminate()
        print(f"the server ended with {process.wait(60)} after SIGTERM")
    finally:
        process.kill()
        print(process.communicate()[0][-4000:], end="")


async def load(url: str, pid: int, arguments: argparse.Namespace) -> tuple[Seen, dict[str, float]]:
    """Runs the clients; what they saw, and the server's metrics once it is idle."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=arguments.streams)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        end_s = time.monotonic() + arguments.seconds
        clients = [
            Client(http, seen, seed, arguments.max_tokens).run(end_s)
            for seed in range(arguments.streams)
        ]
        async with _sampled_memory(pid, seen):
            await asyncio.gather(*clients)
        for _ in range(100):
            metrics = _metrics((await http.get("/metrics")).text)
            if not any(_left(metrics).values()):
                break
            await asyncio.sleep(0.1)
    return seen, metrics


@contextlib.asynccontextmanager
async def _sampled_memory(pid: int, seen: Seen) -> AsyncIterator[None]:
    async def sample() -> None:
        while True:
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert found is not None
            seen.rss_bytes.append(int(found[1]) * 1024)
            await asyncio.sleep(0.25)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()


def _metrics(text: str) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _left(metrics: dict[str, float]) -> dict[str, float]:
    """What is still held; all 0 once nothing runs."""
    pages = metrics["cwm_engine_num_pages"] - metrics["cwm_engine_num_free_pages"]
    return {
        "running requests": metrics["cwm_engine_num_running"],
        "waiting requests": metrics["cwm_engine_num_waiting"],
        "pages": pages,
        "open HTTP requests": metrics["cwm_http_open_requests"] - 1,  # the one that asks
    }


def report(seen: Seen, metrics: dict[str, float], seconds: float) -> list[str]:
    """Prints the tables; what does not hold."""
    print("| | p50 | p95 | max |\n|---|---|---|---|")
    for name, values in (
        ("time to first token, ms", seen.first_token_s),
        ("time per token, ms", seen.token_s),
        ("whole request, ms", seen.total_s),
    ):
        print(f"| {name} | " + " | ".join(f"{1000 * v:.1f}" for v in _quantiles(values)) + " |")
    made = metrics["cwm_engine_generated_tokens_total"]
    print(f"\n{made:.0f} tokens generated, {made / seconds:.0f} in a second")
    print("\n| outcome | requests |\n|---|---|")
    for name, count in sorted(seen.counts.items()):
        print(f"| {name} | {count} |")
    ended = {
        outcome: sum(
            v
            for k, v in metrics.items()
            if k.startswith("cwm_generations_total") and f'"{outcome}"' in k
        )
        for outcome in ("answered", "client", "timeout", "error", "shutdown")
    }
    print("\nadmitted requests by the server's count: " + json.dumps(ended))
    third = max(1, len(seen.rss_bytes) // 3)
    first, last = (statistics.median(p) for p in (seen.rss_bytes[:third], seen.rss_bytes[-third:]))
    growth = last / first - 1
    print(f"resident memory: {first / 2**20:.0f} MiB, later {last / 2**20:.0f} ({growth:+.1%})")
    return _failures(seen, metrics, ended, growth)


def _failures(
    seen: Seen, metrics: dict[str, float], ended: dict[str, float], growth: float
) -> list[str]:
    failures = [f"left: {count:.0f} {name}" for name, count in _left(metrics).items() if count]
    failures += [
        f"{ended[name]:.0f} ended by {name}" for name in ("timeout", "error") if ended[name]
    ]
    server_errors = {k: v for k, v in metrics.items() if re.search(r'status="5\d\d"', k)}
    failures += [f"{key}: {count:.0f}" for key, count in server_errors.items()]
    if growth > MAX_GROWTH:
        failures.append(f"memory grew by {growth:.1%}; expected at most {MAX_GROWTH:.0%}")
    return failures + seen.problems[:20]


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (float("nan"),) * 3
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18], max(values)


def main(argv: list[str] | None = None) -> int:
    """Prints the report; 0 if everything holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="by default a tiny one")
    parser.add_argument("--streams", type=int, default=64, help="clients at once")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=64, help="of a request, at most")
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--max-waiting", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=1024)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or make_tiny(Path(folder))
        with server(model, arguments) as (pid, url):
            seen, metrics = asyncio.run(load(url, pid, arguments))
    failures = report(seen, metrics, arguments.seconds)
    for failure in failures:
        print(f"FAILED: {failure}")
    print("everything holds" if not failures else f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
