"""Contract: the page's JSON API, its limits, and what it refuses."""

import threading

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from oracle import Gate, Oracle

from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.prediction import PredictionError
from cwm_jax.debugger.web import MAX_SOURCE_CHARACTERS, make_router
from cwm_jax.trace.format import START_MARKER

SOURCE = """\
def double(n):
    m = n * 2
    return m
def start(k):
    x = double(k)
    y = double(x)
    return x + y
"""
API = "/debugger/api/sessions"


@pytest.fixture
def make_client(tokenizer, tracer):
    """A client of a bare application whose model is the truth about `SOURCE`."""

    def make(**options) -> TestClient:
        frames = tracer.trace(program_of_source(SOURCE, "start(1)").context).frames
        make_predictor = options.pop("make_predictor", lambda: Oracle(tokenizer, frames))
        app = FastAPI()
        app.include_router(make_router(make_predictor, tokenizer, **options))
        return TestClient(app)

    return make


def begin(client: TestClient, **fields) -> tuple[str, dict]:
    reply = client.post(API, json={"source": SOURCE, "call": "start(1)", **fields})
    assert reply.status_code == 201, reply.text
    return f"{API}/{reply.json()['id']}/commands", reply.json()


def do(client: TestClient, commands: str, command: str, **fields) -> dict:
    reply = client.post(commands, json={"command": command, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_session_goes_through_all_commands(make_client):
    client = make_client()
    commands, state = begin(client)
    assert state["error"] == "" and state["lines"][state["marked"] - 1] == "def main():"
    assert [f["event"] for f in state["frames"]] == ["call"]
    for command, event, source in (
        ("step", "line", "return start(1)"),
        ("step", "call", "def start(k):"),
        ("step", "line", "x = double(k)"),
        ("next", "line", "y = double(x)"),
        ("back", "line", "x = double(k)"),
        ("retry", "line", "x = double(k)"),
        ("out", "return", "return start(1)"),
        ("back", "line", "x = double(k)"),
        ("return", "return", "return x + y"),
        ("reset", "call", "def main():"),
    ):
        state = do(client, commands, command)
        assert state["error"] == ""
        assert (state["frames"][-1]["event"], state["frames"][-1]["source"]) == (event, source)
    state = do(client, commands, "break", line=4, condition="n == 2")
    assert state["breakpoints"] == [{"line": 4, "condition": "n == 2"}]
    state = do(client, commands, "continue")
    assert state["why"] == "breakpoint"
    frame = state["frames"][-1]
    assert frame["lines"] == [4]
    assert frame["locals"][-1] == {
        "name": "m",
        "value": "4",
        "changed": True,
        "unresolved": False,
    }
    assert [scope["name"] for scope in frame["stack"]] == ["main", "start", "double"]
    assert do(client, commands, "clear")["breakpoints"] == []
    state = do(client, commands, "set", name="m", value="[1]")
    assert state["frames"][-1]["origin"] == "edited"
    state = do(client, commands, "rewind", frame=2)
    assert len(state["frames"]) == 3
    assert do(client, commands, "continue")["finished"]


def test_a_comparison_is_switched_on_and_off(make_client):
    client = make_client()
    commands, _ = begin(client)
    do(client, commands, "continue")
    state = do(client, commands, "compare")
    assert state["comparing"] and state["first_difference"] is None
    assert {f["compared"]["verdict"] for f in state["frames"]} == {"same"}
    do(client, commands, "rewind", frame=3)
    state = do(client, commands, "set", name="k", value="5")
    assert state["frames"][-1]["compared"]["why_unknown"] == "frame 3 was edited"
    state = do(client, commands, "compare", on=False)
    assert not state["comparing"] and state["frames"][0]["compared"] is None
    refused = make_client(may_run=False)
    commands, _ = begin(refused)
    assert "runs no programs" in do(refused, commands, "compare")["error"]
    _, state = begin(refused, compare=True)
    assert "runs no programs" in state["error"]


def test_the_real_arguments_are_the_entrys_when_compared_from_the_start(make_client):
    client = make_client()
    source = SOURCE.replace("start(k):", "start(k):  # << START_OF_TRACE") + "start(k=8)\n"
    _, state = begin(client, source=source, call=None, compare=True)
    assert state["frames"][0]["origin"] == "given"
    assert state["frames"][0]["locals"][0]["value"] == "8"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"command": "back"}, "nothing to take back"),
        ({"command": "set", "name": "x"}, "needs 'value'"),
        ({"command": "break"}, "needs 'line'"),
        ({"command": "break", "line": 99}, "expected 1 to"),
        ({"command": "clear", "line": 3}, "no breakpoint"),
        ({"command": "rewind", "frame": 9}, "expected 0 to 0"),
        ({"command": "set", "name": "1x", "value": "1"}, "no name of a variable"),
    ],
)
def test_commands_that_do_not_fit_are_errors_in_the_state(make_client, command, message):
    client = make_client()
    commands, _ = begin(client)
    state = do(client, commands, **command)
    assert message in state["error"]
    assert len(state["frames"]) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"source": "x" * (MAX_SOURCE_CHARACTERS + 1)}, "source"),
        ({"source": 5}, "source"),
        ({"source": "x", "temperature": -1}, "temperature"),
        ({"source": "x", "nothing": 1}, "nothing"),
        ({"source": "x", "seed": 1 << 70}, "seed"),
        ({}, "source"),
    ],
)
def test_malformed_requests_are_refused_by_field(make_client, body, field):
    reply = make_client().post(API, json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    ("source", "call", "message"),
    [
        ("def f(:\n", None, "SyntaxError"),
        ("x = 1\n", "f(2)", "expected one of its names"),
        ("x = '<|frame_sep|>'\n", None, "special token"),
        ("def f():\n    return " + "(" * 300 + ")" * 300, None, "too many nested"),
        # what parses and does not compile
        ("return 1\n", None, "'return' outside function"),
        ("break\n", None, "'break' outside loop"),
        ("def f():\n    nonlocal x\n", None, "no binding for nonlocal 'x'"),
        ("def f(a, a): pass\n", "f(1, 2)", "duplicate argument 'a'"),
        ("from __future__ import nope\n", None, "future feature nope"),
        ("x = " + "lambda: " * 1500 + "1\n", None, "RecursionError"),
        # what the compiler leaves out
        (
            f"def f():\n    return 1\n    def g():{START_MARKER}\n        pass\n",
            None,
            "'g' at line 3",
        ),
    ],
)
def test_programs_that_cannot_be_debugged_say_why(make_client, source, call, message):
    reply = make_client().post(API, json={"source": source, "call": call})
    assert reply.status_code == 422
    assert message in reply.json()["detail"]


def test_unknown_sessions_and_commands_are_refused(make_client):
    client = make_client()
    commands, _ = begin(client)
    assert client.post(commands, json={"command": "quit"}).status_code == 422
    assert client.get(f"{API}/unknown").status_code == 404
    assert client.delete(commands.removesuffix("/commands")).status_code == 204
    assert client.post(commands, json={"command": "step"}).status_code == 404


def test_sessions_are_bounded_in_number_age_and_frames(make_client):
    client = make_client(max_sessions=2, max_frames=3)
    first, _ = begin(client)
    second, _ = begin(client)
    do(client, first, "step")
    begin(client)
    assert client.post(second, json={"command": "step"}).status_code == 404
    for _ in range(2):
        do(client, first, "step")
    assert "at most 3 frames" in do(client, first, "step")["error"]
    client = make_client(max_idle_s=0.0)
    commands, _ = begin(client)
    assert client.post(commands, json={"command": "step"}).status_code == 404


def test_a_command_that_runs_is_looked_at_and_interrupted(make_client, tokenizer, tracer):
    frames = tracer.trace(program_of_source(SOURCE, "start(1)").context).frames
    gate = Gate(Oracle(tokenizer, frames))
    client = make_client(make_predictor=lambda: gate)
    commands, _ = begin(client)
    states = []
    runner = threading.Thread(target=lambda: states.append(do(client, commands, "continue")))
    runner.start()
    assert gate.entered.wait(10)
    assert client.post(commands, json={"command": "step"}).status_code == 409
    assert client.get(commands.removesuffix("/commands")).json()["busy"]
    interrupt = commands.replace("/commands", "/interrupt")
    assert client.post(interrupt).status_code == 202
    gate.opened.set()
    runner.join(10)
    assert states[0]["why"] == "interrupted" and len(states[0]["frames"]) == 2


def test_a_model_that_fails_is_an_error_in_the_page(make_client):
    class Failing:
        def predict(self, request):
            raise PredictionError("no answer; start the server")

    client = make_client(make_predictor=Failing)
    commands, state = begin(client)
    assert state["error"] == ""
    assert do(client, commands, "step")["error"] == "no answer; start the server"


def test_the_page_and_its_files_are_served_and_nothing_else(make_client):
    def key_is_right(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer key":
            raise HTTPException(401, "no key")

    client = make_client(api_dependencies=[Depends(key_is_right)])
    page = client.get("/debugger")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("debugger.js", "debugger.css"):
        assert f"debugger/static/{name}" in page.text
        assert client.get(f"/debugger/static/{name}").status_code == 200
    for name in ("web.py", "..%2Fweb.py", "debugger.html"):
        assert client.get(f"/debugger/static/{name}").status_code == 404
    body = {"source": SOURCE, "call": "start(1)"}
    assert client.post(API, json=body).status_code == 401
    keyed = client.post(API, json=body, headers={"Authorization": "Bearer key"})
    assert keyed.status_code == 201
