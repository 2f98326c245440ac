"""What is malformed, too large or not allowed in gets a 4xx that names the field."""

import json

import fastapi
import fastapi.testclient
import pytest
from serving import MODEL, serve_options

from cwm_jax.serve.app import create_app

HI = {"messages": [{"role": "user", "content": "hi"}]}
GO = {"prompt": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}
ASSISTANT = {"role": "assistant", "content": "a"}


def of(message: dict) -> dict:
    return {"messages": [message]}


@pytest.fixture
def http(fake):
    with fastapi.testclient.TestClient(create_app(fake, serve_options())) as client:
        yield client


def error_of(reply) -> dict:
    """The one form that errors have."""
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


CHAT = [
    ({}, "messages", "missing"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": None}, "messages", "list"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": ["hi"]}, "messages.0", "role is system"),
    (of({"role": "critic", "content": "x"}), "messages.0", "role is system"),
    (of({"role": "user"}), "messages.0.content", "missing"),
    (of({"role": "user", "content": None}), "messages.0.content", "text parts"),
    (of({"role": "user", "content": 5}), "messages.0.content", "text parts"),
    (of({"role": "user", "content": [5]}), "messages.0.content.0", "valid dictionary"),
    (
        of({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        "messages.0.content",
        "'image_url'",
    ),
    (of({"role": "user", "content": [{"type": "text"}]}), "messages.0.content.0.text", "missing"),
    (of({"role": "user", "content": "x", "contnet": 1}), "messages.0.contnet", "'content'"),
    (of({"role": "assistant"}), "messages.0.content", "null"),
    (of({"role": "assistant", "tool_calls": []}), "messages.0.content", "null"),
    (of({"role": "tool", "content": "x"}), "messages.0.tool_call_id", "id of a call"),
    (
        of({"role": "tool", "content": "x", "tool_call_id": "no"}),
        "messages.0.tool_call_id",
        "'no'",
    ),
    (of({"role": "tool", "content": None, "name": "f"}), "messages.0.content", "text parts"),
    (of({"role": "tool", "content": "", "name": "a b"}), "messages.0.name", "pattern"),
    (HI | {"model": 3}, "model", "string"),
    (HI | {"temperature": "hot"}, "temperature", "'hot'"),
    (HI | {"temperature": True}, "temperature", "number"),
    (HI | {"temperature": -0.1}, "temperature", "-0.1"),
    (HI | {"top_p": 0}, "top_p", "greater than 0"),
    (HI | {"top_p": 1.1}, "top_p", "1"),
    (HI | {"max_tokens": -1}, "max_tokens", "-1"),
    (HI | {"max_tokens": 0}, "max_tokens", "0"),
    (HI | {"max_tokens": 1.5}, "max_tokens", "1.5"),
    (HI | {"max_completion_tokens": "7"}, "max_completion_tokens", "'7'"),
    (HI | {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "one of them"),
    (HI | {"n": 0}, "n", "0"),
    (HI | {"n": 129}, "n", "128"),
    (HI | {"seed": 2**63}, "seed", "less than"),
    (HI | {"seed": 10**400}, "seed", ""),
    (HI | {"stop": ""}, "stop", "at least 1"),
    (HI | {"stop": ["a", None]}, "stop.1", "string"),
    (HI | {"stop": ["a"] * 17}, "stop", "16"),
    (HI | {"stop": {}}, "stop", "a list of strings"),
    (HI | {"stop_token_ids": [9999]}, "stop_token_ids", "0 to 575"),
    (HI | {"stop_token_ids": [1] * 17}, "stop_token_ids", "16"),
    (HI | {"stop_token_ids": [*range(16)]}, "stop_token_ids", "at most 16"),
    (HI | {"stream": 1}, "stream", "boolean"),
    (
        HI | {"stream_options": {"include_usages": True}},
        "stream_options.include_usages",
        "'include_usage'",
    ),
    (HI | {"logprobs": 2}, "logprobs", "boolean"),
    (HI | {"top_logprobs": 2}, "top_logprobs", "logprobs is not set"),
    (HI | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    (HI | {"temprature": 1}, "temprature", "'temperature'"),
    (HI | {"": 1}, "body", "no such field"),
    (HI | {"\ud800": 1}, "\ufffd" * 3, "no such field"),
    (HI | {"logit_bias": {"1": 2}}, "logit_bias", "not supported"),
    (HI | {"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    (HI | {"frequency_penalty": False}, "frequency_penalty", "not supported"),
    (HI | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (HI | {"parallel_tool_calls": False}, "parallel_tool_calls", "not supported"),
    (HI | {"functions": []}, "functions", "use tools"),
    (HI | {"tools": TOOL}, "tools", "list"),
    (HI | {"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
    (HI | {"tools": [{"type": "web"}]}, "tools.0.type", "'function'"),
    (
        HI | {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools.0.function.name",
        "pattern",
    ),
    (
        HI | {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
        "tools.0.function.strict",
        "not supported",
    ),
    (HI | {"tools": [TOOL, TOOL]}, "tools.1.function.name", "twice"),
    (
        HI | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
        "'g'",
    ),
    (HI | {"tool_choice": "required"}, "tool_choice", "no tools"),
    (HI | {"tool_choice": "any"}, "tool_choice", "'any'"),
    (HI | {"reasoning_effort": "huge"}, "reasoning_effort", "'huge'"),
    (HI | {"reasoning": {"enable": True}}, "reasoning.enable", "'enabled'"),
    (
        HI | {"reasoning_effort": "none", "reasoning": {"enabled": True}},
        "reasoning_effort and reasoning.enabled",
        "contradict",
    ),
    (
        {"messages": [ASSISTANT], "reasoning_effort": "low"},
        "reasoning_effort",
        "the answer has begun",
    ),
    (HI | {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "no such field"),
]
COMPLETIONS = [
    ({}, "prompt", "missing"),
    ({"prompt": None}, "prompt", "token ids"),
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": [[]]}, "prompt.0", "at least 1"),
    ({"prompt": [[1], "a"]}, "prompt.1", "list"),
    ({"prompt": [1, "a"]}, "prompt.1", "integer"),
    ({"prompt": [1, True]}, "prompt.1", "integer"),
    ({"prompt": ["a", 1]}, "prompt.1", "string"),
    ({"prompt": {"a": 1}}, "prompt", "token ids"),
    ({"prompt": ["x"] * 300}, "prompt", "256"),
    (GO | {"n": 100, "prompt": ["x"] * 3}, "n", "256"),
    (GO | {"logprobs": 21}, "logprobs", "20"),
    (GO | {"logprobs": True}, "logprobs", "integer"),
    (GO | {"echo": True}, "echo", "not supported"),
    (GO | {"best_of": 2}, "best_of", "not supported"),
    (GO | {"suffix": "x"}, "suffix", "not supported"),
    (GO | {"allowed": {"after": 1}}, "allowed.choices", "missing"),
    (GO | {"allowed": {"after": 1, "choices": [], "then": [1]}}, "allowed.choices", "at least 1"),
    (
        GO | {"allowed": {"after": 1, "choices": [[]], "then": [1]}},
        "allowed.choices.0",
        "at least 1",
    ),
    (
        GO | {"allowed": {"after": 1, "choices": [[1], [576]], "then": [1]}},
        "allowed.choices.1",
        "576",
    ),
    (GO | {"allowed": {"after": 576, "choices": [[1]], "then": [1]}}, "allowed.after", "575"),
    (
        GO | {"allowed": {"after": 1, "choices": [[1] * 70_000], "then": [1]}},
        "allowed.choices",
        "at most 65536",
    ),
]


@pytest.mark.parametrize(
    ("path", "body", "param", "problem"),
    [("/v1/chat/completions", *case) for case in CHAT]
    + [("/v1/completions", *case) for case in COMPLETIONS],
)
def test_a_malformed_request_is_told_its_field(path, body, param, problem, fake):
    app = create_app(fake, serve_options(max_body_bytes=1_000_000))
    with fastapi.testclient.TestClient(app) as http:
        reply = http.post(path, content=json.dumps(body), headers=JSON)
    error = error_of(reply)
    assert reply.status_code == 400, error
    assert error["param"] == param and problem in error["message"], error
    assert error["type"] == "invalid_request_error" and error["code"]
    assert not fake.asked


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "problem"),
    [
        (b"", JSON, 400, "missing"),
        (b"{", JSON, 400, "no JSON"),
        (b"[]", JSON, 400, "body"),
        (b"null", JSON, 400, "body"),
        (b'{"prompt": "\xff"}', JSON, 400, "body"),
        (b'\xff\xfe{"prompt"', JSON, 400, ""),
        (b'{"prompt": "x", "temperature": NaN}', JSON, 400, "temperature"),
        (b'{"prompt": "x", "temperature": 1e999}', JSON, 400, "temperature"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", JSON, 400, "body"),
        (b'{"prompt": ' + b"[" * 50_000, JSON, 400, "body"),
        (b'{"prompt": "x"}', {"Content-Type": "text/plain"}, 415, "text/plain"),
        (b'{"prompt": "x"}', {"Content-Type": "application/x-www-form-urlencoded"}, 415, "form"),
        (b'{"prompt": "x"}', {}, 415, "application/json"),
        (b'{"prompt": "' + b"x" * 100_001 + b'"}', JSON, 413, "100000"),
    ],
)
def test_a_body_that_is_no_json_request_is_refused(body, headers, status, problem, http, fake):
    reply = http.post("/v1/completions", content=body, headers=headers)
    assert reply.status_code == status and problem in error_of(reply)["message"]
    assert not fake.asked


def test_deep_json_where_any_is_allowed(http):
    """Tool schemas and refused fields take any JSON, nested however deep."""
    nested = b'{"a": ' * 900 + b"1" + b"}" * 900
    tools = b'[{"type": "function", "function": {"name": "f", "parameters": %b}}]' % nested
    hi = json.dumps(HI)[:-1].encode()
    for field in (b'"tools": ' + tools, b'"logit_bias": ' + nested):
        reply = http.post("/v1/chat/completions", content=hi + b", " + field + b"}", headers=JSON)
        assert reply.status_code == 400 and error_of(reply)["param"]


def test_a_body_in_pieces_is_measured_too(http):
    pieces = (b"x" * 10_000 for _ in range(11))
    reply = http.post("/v1/completions", content=pieces, headers=JSON)
    assert reply.status_code == 413 and "100000" in error_of(reply)["message"]


def test_neutral_values_of_what_is_not_supported_are_taken(http, fake):
    neutral = {
        "logit_bias": {},
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "repetition_penalty": 1.0,
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "store": False,
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "audio": None,
        "best_of": None,
        "stream_options": {"include_usage": False, "include_obfuscation": False},
    }
    assert http.post("/v1/chat/completions", json=HI | neutral).status_code == 200
    assert http.post("/completions", json=GO | {"echo": False, "suffix": None}).status_code == 200
    assert len(fake.asked) == 2


def test_unknown_paths_and_methods(http):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PATCH", "/models", 405),
        ("GET", "/v1/models/gpt", 404),
    ):
        reply = http.request(method, path)
        assert reply.status_code == status and error_of(reply)["message"]
    assert http.get("/v1/completions").headers["allow"] == "POST"


def test_a_key_opens_everything_but_health(fake):
    options = serve_options(api_keys=("first key", "second"))
    with fastapi.testclient.TestClient(create_app(fake, options)) as http:
        paths = ["/v1/models", "/metrics", "/openapi.json", "/nothing", "/debugger/api/sessions"]
        for path in paths:
            for header in ({}, {"Authorization": "Bearer third"}, {"Authorization": "second"}):
                reply = http.get(path, headers=header)
                assert reply.status_code == 401 and error_of(reply)["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        wrong = http.post("/v1/completions", json=GO, headers={"Authorization": b"Bearer \xe9"})
        assert wrong.status_code == 401
        for key in ("first key", "second"):
            header = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=header).status_code == 200
        for path in ("/health", "/v1/health"):
            assert http.get(path).status_code == 200
        for path in ("/debugger", "/debugger/static/debugger.js"):  # not mounted here
            assert http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, "permission_error"),
        (409, "invalid_request_error"),
        (422, "invalid_request_error"),
        (500, "server_error"),
    ],
)
def test_what_a_mounted_page_refuses_has_its_own_type(status, kind, fake):
    router = fastapi.APIRouter()

    @router.get("/page")
    def page():
        raise fastapi.HTTPException(status, "not so")

    app = create_app(fake, serve_options(), routers=[router])
    with fastapi.testclient.TestClient(app) as http:
        reply = http.get("/page")
    assert reply.status_code == status and error_of(reply)["type"] == kind


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_names": ()}, "one or more names"),
        ({"api_keys": ("",)}, "API key"),
        ({"api_keys": ("ü",)}, "API key"),
        ({"request_timeout_s": 0}, "request_timeout_s is 0"),
        ({"max_body_bytes": -1}, "max_body_bytes is -1"),
    ],
)
def test_options_that_make_no_server_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        serve_options(**changes)


def test_the_first_served_name_is_the_default(http):
    assert http.post("/v1/completions", json=GO).json()["model"] == MODEL
    assert http.post("/v1/completions", json=GO | {"model": "alias"}).json()["model"] == "alias"
