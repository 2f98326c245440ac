"""Contract: servers of several kinds are asked as they understand it, and fail in plain words."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cwm_jax.debugger.http import HttpPredictor
from cwm_jax.debugger.prediction import PredictionError, PredictionRequest
from cwm_jax.inference.constraints import ChoicesAfter

SEP, EOS = 100, 101
REQUEST = PredictionRequest(prompt=[1, 2], max_tokens=9, stop_token_ids=(SEP, EOS))
CONSTRAINED = PredictionRequest(
    prompt=[1, 2],
    max_tokens=9,
    stop_token_ids=(SEP, EOS),
    seed=3,
    constraint=ChoicesAfter(after=4, choices=((5, 6),), then=(SEP,)),
)


@contextlib.contextmanager
def server(respond):
    """Answers by ``respond(path, body or None) -> (status, object or bytes)``; yields the URL."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            seen.append((self.path, body, self.headers.get("Authorization")))
            status, answer = respond(self.path, body)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 (the base class's names)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http_server.server_port}", seen
        finally:
            http_server.shutdown()
            thread.join()


def released(path, body):
    """As the released demo's: no /v1, no list of models, tokens with the stop token."""
    if path != "/completions":
        return 404, {"error": "no"}
    if not isinstance(body["stop"], str):
        return 500, {"error": "stop"}
    return 200, {"choices": [{"text": "x", "tokens": [7, SEP], "finish_reason": "length"}]}


def vllm(path, body):
    if path == "/v1/models":
        return 200, {"data": [{"id": "some/model"}]}
    if path != "/v1/completions" or body["model"] != "some/model" or not body["return_token_ids"]:
        return 404, {"error": {"message": "The model does not exist", "param": "model"}}
    if "allowed" in body and body["allowed"]["after"] != 4:
        return 400, {}
    assert body["stop_token_ids"] == [SEP, EOS]
    return 200, {"choices": [{"text": "x", "token_ids": [7, SEP, 8], "finish_reason": "stop"}]}


def strict(path, body):
    """Refuses what it does not know, and names it; leaves the stop token out."""
    if path == "/v1/models":
        return 200, {"data": []}
    known = {"prompt", "max_tokens", "temperature", "top_p", "stop", "seed"}
    unknown = sorted({*body} - known)
    if unknown:
        message = f"unknown field; expected one of {sorted({*known, 'allowed', 'stop_token_ids'})}"
        return 400, {"error": {"message": message, "param": unknown[-1]}}
    return 200, {"choices": [{"token_ids": [7], "finish_reason": "stop"}]}


def ours(path, body):
    """As this project's: strict, and its refusals list the fields that it knows."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "cwm"}]}
    known = {"prompt", "max_tokens", "temperature", "top_p", "stop", "stop_token_ids", "model"}
    for name in sorted({*body} - known):
        message = f"{name} is unknown; expected one of {sorted({*known, 'allowed', 'seed'})}"
        return 400, {"error": {"message": message, "param": name}}
    assert body["stop_token_ids"] == [SEP, EOS]
    return 200, {"choices": [{"tokens": [7, SEP], "token_ids": [7, SEP], "finish_reason": "stop"}]}


@pytest.mark.parametrize("respond", [released, vllm, strict, ours])
@pytest.mark.parametrize("suffix", ["", "/"])
def test_servers_of_all_kinds_are_understood(respond, suffix, tokenizer):
    with server(respond) as (url, seen):
        predictor = HttpPredictor(url + suffix, tokenizer, api_key="key")
        assert predictor.predict(REQUEST) == [7, SEP]
        first = len(seen)
        assert predictor.predict(REQUEST) == [7, SEP]
        assert len(seen) == first + 1, "what the server understands is found out once"
    assert seen[-1][1]["prompt"] == [1, 2] and seen[-1][2] == "Bearer key"


def test_a_url_with_its_version_is_taken_as_it_is(tokenizer):
    with server(vllm) as (url, seen):
        assert HttpPredictor(f"{url}/v1", tokenizer).predict(CONSTRAINED) == [7, SEP]
    assert [path for path, *_ in seen] == ["/v1/models", "/v1/completions"]
    assert seen[-1][1]["allowed"] == {"after": 4, "choices": [[5, 6]], "then": [SEP]}
    assert seen[-1][1]["seed"] == 3


def refuses(field_body):
    return lambda path, body: (404, {}) if path.endswith("models") else field_body


FAILURES = {
    "a constraint that is refused": (
        refuses((400, {"error": {"message": "unknown field 'allowed'", "param": "allowed"}})),
        "go on with --no-constrain",
    ),
    "a constraint that FastAPI refuses": (
        refuses((422, {"detail": [{"loc": ["body", "allowed"], "msg": "Extra inputs"}]})),
        "go on with --no-constrain",
    ),
    "a wrong key": (refuses((401, {"error": {"message": "no key"}})), "401: no key.*--api-key"),
    "no such path": (refuses((404, b"<html>")), "404.*is the address right"),
    "temperature 0": (refuses((500, b"ZeroDivisionError")), "--temperature 0.01"),
    "a busy server": (refuses((429, {"error": {"message": "queue full"}})), "429: queue full"),
    "no JSON": (refuses((200, b"<html>")), "expected JSON"),
    "no choices": (refuses((200, {"choices": []})), "lacks what a completion has"),
    "texts alone": (refuses((200, {"choices": [{"text": "x"}]})), "token_ids"),
    "ids that are none": (refuses((200, {"choices": [{"tokens": ["a"]}]})), "token_ids"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_told_in_plain_words(name, tokenizer):
    respond, message = FAILURES[name]
    with server(respond) as (url, _), pytest.raises(PredictionError, match=message):
        HttpPredictor(url, tokenizer).predict(CONSTRAINED)


def test_a_refusal_of_a_field_that_is_needed_is_not_asked_again(tokenizer):
    message = "temperature is 5; known are 'temperature' and 'stop_token_ids'"
    error = {"error": {"message": message, "param": "temperature"}}
    refused = pytest.raises(PredictionError, match="400: temperature is 5")
    with server(refuses((400, error))) as (url, seen), refused:
        HttpPredictor(url, tokenizer, model="m").predict(REQUEST)
    assert len(seen) == 1


def test_an_empty_answer_that_stopped_is_the_end(tokenizer):
    respond = refuses((200, {"choices": [{"tokens": [], "finish_reason": "stop"}]}))
    with server(respond) as (url, _):
        assert HttpPredictor(url, tokenizer).predict(REQUEST) == [EOS]


def test_a_server_that_is_not_there_or_does_not_answer(tokenizer):
    with server(vllm) as (url, _):
        pass
    with pytest.raises(PredictionError, match=r"cannot be reached.*is the server running"):
        HttpPredictor(url, tokenizer).predict(REQUEST)
    gate = threading.Event()

    def late(path, body):
        gate.wait(10)
        return 200, {}

    with server(late) as (url, _):
        predictor = HttpPredictor(url, tokenizer, model="m", timeout_s=0.2)
        with pytest.raises(PredictionError, match=r"within 0\.2 s.*--timeout"):
            predictor.predict(REQUEST)
        gate.set()
    with pytest.raises(ValueError, match="expected a URL"):
        HttpPredictor("localhost:1", tokenizer)
