"""Clients that go, engines that are slow, full or dead, and bodies that do not come."""

import json
import socket
import time
import urllib.parse

import httpx
import openai
import pytest
from serving import MODEL, metrics, openai_client, serve_options, served

HI = [{"role": "user", "content": "hi"}]
OUTCOME = 'cwm_generations_total{{endpoint="completions",outcome="{}"}}'


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def outcomes(url: str, outcome: str) -> float:
    return metrics(url).get(OUTCOME.format(outcome), 0.0)


def errors_of(reply: httpx.Response) -> list[dict]:
    """The errors among the events of a stream."""
    events = [e.removeprefix("data: ") for e in reply.text.split("\n\n") if e]
    return [json.loads(e)["error"] for e in events if e.startswith('{"error"')]


LONG = {"prompt": [1, 2, 3], "max_tokens": 400, "ignore_eos": True, "n": 8}


def sent(url: str, head: str, body: bytes) -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    address = urllib.parse.urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_row(stream, url):
    """On the real engine: its 3200 tokens are never all made."""
    before = metrics(url)
    body = json.dumps(LONG | {"stream": stream}).encode()
    with sent(url, f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n", body):
        wait_for(lambda: metrics(url)["cwm_engine_num_running"] > 0)
    wait_for(lambda: outcomes(url, "client") > before.get(OUTCOME.format("client"), 0.0))
    wait_for(lambda: metrics(url)["cwm_engine_num_running"] == 0)
    after = metrics(url)
    assert after["cwm_engine_num_free_pages"] == after["cwm_engine_num_pages"]
    name = "cwm_engine_generated_tokens_total"
    assert after[name] - before[name] < 8 * 400
    wait_for(lambda: metrics(url)["cwm_http_open_requests"] == 1)


def test_a_client_that_goes_early_cancels_every_choice(fake, fake_url):
    fake.answer, fake.token_s = "x" * 50, 0.01
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{fake_url}/completions", json={"prompt": "x", "n": 3}, timeout=0.1)
    wait_for(lambda: len(fake.streams) == 3 and all(s.is_cancelled for s in fake.streams))
    assert outcomes(fake_url, "client") == 1


def test_what_is_not_finished_in_time_is_told(fake, fake_url, fake_client):
    fake.answer, fake.token_s = "x y z " * 30, 0.05
    with pytest.raises(openai.InternalServerError) as late:
        fake_client.completions.create(prompt="x", model=MODEL)
    assert late.value.status_code == 504 and late.value.code == "timeout"
    assert "max_tokens" in late.value.message
    with pytest.raises(openai.APIError, match="not finished after 1"):
        for _ in fake_client.chat.completions.create(messages=HI, model=MODEL, stream=True):
            pass
    assert all(stream.is_cancelled for stream in fake.streams)
    assert outcomes(fake_url, "timeout") == 1


def test_an_engine_that_is_stuck_is_told_too(fake, fake_client):
    fake.token_s = 1e6
    start = time.monotonic()
    with pytest.raises(openai.InternalServerError):
        fake_client.completions.create(prompt="x", model=MODEL)
    assert time.monotonic() - start < 5
    fake.token_s = 0.0


def test_a_full_queue_is_told_with_when_to_come_again(fake, fake_client):
    fake.max_streams = 2
    with pytest.raises(openai.RateLimitError) as full:
        fake_client.completions.create(prompt=["x", "y", "z"], model=MODEL)
    assert full.value.response.headers["retry-after"] == "1" and full.value.code == "queue_full"
    assert len(fake.streams) == 2 and all(stream.is_cancelled for stream in fake.streams)


def test_the_engines_queue_is_bounded(url):
    with openai_client(url) as client, pytest.raises(openai.RateLimitError):
        client.completions.create(prompt=[1], n=128, model=MODEL)
    names = ("cwm_engine_num_running", "cwm_engine_num_waiting")
    wait_for(lambda: [metrics(url)[name] for name in names] == [0, 0])


def test_open_requests_are_bounded(fake):
    fake.answer, fake.token_s = "x" * 20, 0.05
    with served(fake, serve_options(max_open_requests=1)) as url:
        with httpx.stream(
            "POST", f"{url}/completions", json={"prompt": "x", "stream": True}
        ) as reply:
            pieces = reply.iter_bytes()  # kept: without it the stream is closed
            next(pieces)
            refused = httpx.post(f"{url}/completions", json={"prompt": "x"})
            assert refused.status_code == 429 and "retry-after" in refused.headers
            assert httpx.get(f"{url}/health").status_code == 200
        wait_for(lambda: httpx.get(f"{url}/models").status_code == 200)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_engine_that_fails_on_the_way_is_told(path, fake, fake_url):
    fake.finish_reason = "error"
    body = {"prompt": "x"} if path == "completions" else {"messages": HI}
    reply = httpx.post(f"{fake_url}/{path}", json=body)
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "engine_failed"
    stream = httpx.post(f"{fake_url}/{path}", json=body | {"stream": True})
    assert stream.status_code == 200 and "[DONE]" not in stream.text
    assert [error["code"] for error in errors_of(stream)] == ["engine_failed"]


def test_a_dead_engine_is_unhealthy(fake, fake_url, fake_client):
    fake.healthy, fake.failure = False, RuntimeError("out of memory")
    assert httpx.get(f"{fake_url}/health").status_code == 503
    with pytest.raises(openai.InternalServerError) as dead:
        fake_client.completions.create(prompt="x", model=MODEL)
    assert dead.value.status_code == 503 and not fake.asked


def test_a_bug_is_told_in_the_one_form(fake, fake_url, monkeypatch, caplog):
    monkeypatch.setattr(fake, "stats", None)
    reply = httpx.get(f"{fake_url}/metrics")
    assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal_error"
    monkeypatch.undo()
    assert metrics(fake_url)['cwm_http_responses_total{path="/metrics",status="500"}'] == 1
    monkeypatch.setattr(fake.tokenizer, "decode", None)
    stream = httpx.post(f"{fake_url}/completions", json={"prompt": "x", "stream": True})
    assert [error["code"] for error in errors_of(stream)] == ["internal_error"]
    assert "a stream failed" in caplog.text


@pytest.mark.parametrize("begun", [b"", b'{"prompt": '])
def test_a_body_that_does_not_come_is_not_waited_for(begun, fake_url):
    with sent(fake_url, "Content-Length: 50\r\n", begun) as connection:
        reply = b""
        while piece := connection.recv(4096):  # and the connection is closed
            reply += piece
    assert reply.startswith(b"HTTP/1.1 408") and b'"timeout"' in reply


def test_ten_megabytes_are_refused_over_the_wire(url):
    with openai_client(url) as client, pytest.raises(openai.APIStatusError) as large:
        client.completions.create(prompt="x" * 10_000_000, model=MODEL)
    assert large.value.status_code == 413 and large.value.param == "body"


def test_many_clients_at_once(url):
    """More than there are rows; each gets the answer that it gets alone."""
    with openai_client(url) as client:
        asked = {"model": MODEL, "temperature": 0.0, "max_tokens": 12}
        alone = client.completions.create(prompt="a", **asked).choices[0].text
        replies = client.completions.create(prompt=["a"] * 8, **asked).choices
    assert {choice.text for choice in replies} == {alone}
