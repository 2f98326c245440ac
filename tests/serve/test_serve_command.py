"""``python -m cwm_jax serve`` as a process: it starts, serves, and finishes what runs."""

import concurrent.futures
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax
import openai
import pytest

from convert import save_hf
from cwm_jax.__main__ import main
from cwm_jax.model.transformer import init

ROOT = Path(__file__).parents[2]
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def folder(tokenizer, model_config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny-export"
    save_hf(path, model_config, init(model_config, jax.random.key(0)), tokenizer)
    return path


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server, once it listens, and its URL."""
    command = [sys.executable, "-m", "cwm_jax", "serve", str(folder), "--port", "0", *options]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                yield server, found[1]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        server.kill()
        server.communicate()


def test_a_signal_lets_requests_finish_and_refuses_new_ones(folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n\nother\n")
    options = ("--max-rows", "4", "--no-warm-up", "--api-key-file", str(keys))
    with (
        process(folder, *options, "--served-model-name", "tiny", "also") as (server, url),
        httpx.Client(base_url=url, headers=KEY, timeout=60) as http,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 401
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["tiny", "also"]
        assert httpx.get(f"{url}/debugger").status_code == 200
        assert httpx.post(f"{url}/debugger/api/sessions", json={}).status_code == 401
        elsewhere = http.post("/debugger/api/sessions", json={}, headers={"Host": "other.example"})
        assert elsewhere.status_code == 403 and "other.example" in elsewhere.text
        malformed = http.post("/debugger/api/sessions", json={"sauce": "x"})
        assert malformed.json()["error"]["param"] == "source"

        with openai.OpenAI(base_url=f"{url}/v1", api_key="other") as client:
            assert client.completions.create(prompt="x", model="also").usage.prompt_tokens == 2
        long = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 8}
        running = [threads.submit(http.post, "/completions", json=long) for _ in range(2)]
        with http.stream("POST", "/completions", json=long | {"stream": True}) as stream:
            events = stream.iter_lines()
            next(events)
            server.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            while (health := httpx.get(f"{url}/health")).status_code == 200:
                assert time.monotonic() < deadline
            assert health.status_code == 503
            refused = http.post("/completions", json={"prompt": "x"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert [*events][-2:] == ["data: [DONE]", ""]
        for reply in running:
            choices = reply.result().json()["choices"]
            assert [choice["finish_reason"] for choice in choices] == ["length"] * 8
        assert server.wait(20) == 0


def test_draining_ends_in_time(folder):
    options = ("--no-warm-up", "--drain-timeout-s", "0.2", "--debugger", "off", "--max-rows", "1")
    with process(folder, *options) as (server, url):
        assert httpx.get(f"{url}/debugger").status_code == 404
        body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 60}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as stream:
            events = (line for line in stream.iter_lines() if line)
            next(events)
            server.send_signal(signal.SIGTERM)
            *_, last = events
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere"),
        (["{folder}", "--max-length", "100000"], "max_length is 100000"),
        (["{folder}", "--api-key", ""], "API key"),
        (["{folder}", "--request-timeout-s", "-1"], "request_timeout_s is -1"),
        (["{folder}", "--api-key-file", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_served_is_told(arguments, problem, folder, capsys):
    assert main(["serve", *(a.format(folder=folder) for a in arguments)]) == 2
    assert problem in capsys.readouterr().err
