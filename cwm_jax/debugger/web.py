"""The debugger as a web page and its JSON API, to be mounted on a server."""

from __future__ import annotations

import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from cwm_jax.debugger import web_state
from cwm_jax.debugger.breakpoints import Breakpoint
from cwm_jax.debugger.comparison import run_for_comparison
from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.frame_model import DebugOptions
from cwm_jax.debugger.prediction import PredictionError, Predictor
from cwm_jax.debugger.session import Session, Stop
from cwm_jax.sandbox import SandboxError
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.tracer import Trace, TraceLimits, Tracer

MAX_SOURCE_CHARACTERS = 50_000  # assumed, as the other limits
MAX_VALUE_CHARACTERS = 10_000
MAX_SESSIONS = 64
MAX_IDLE_S = 3600.0
MAX_FRAMES = 2000
_COMMAND_FRAMES = 256
_STATIC = Path(__file__).with_name("static")
_FILES = {"debugger.js": "text/javascript", "debugger.css": "text/css"}
_HEADERS = {
    # Nothing from elsewhere, no inline script: what a model or a program writes stays text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TRACE_LIMITS = TraceLimits(max_events=5000, cpu_s=5.0, wall_s=10.0, memory_bytes=512 << 20)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewSession(_Strict):
    """A program to be debugged, and how."""

    source: str = Field(max_length=MAX_SOURCE_CHARACTERS)
    call: str | None = Field(None, max_length=MAX_VALUE_CHARACTERS)
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.95
    seed: int | None = Field(None, ge=-(2**62), le=2**62)
    constrain: bool = True
    compare: bool = False


class Command(_Strict):
    """One command of a session; the fields that it does not need are left out."""

    command: Literal[
        "step",
        "next",
        "out",
        "return",
        "continue",
        "back",
        "reset",
        "retry",
        "rewind",
        "set",
        "break",
        "clear",
        "compare",
    ]
    line: int | None = Field(None, ge=1, le=MAX_SOURCE_CHARACTERS)
    condition: str | None = Field(None, max_length=200)
    frame: int | None = Field(None, ge=0, le=2 * MAX_FRAMES)
    name: str | None = Field(None, max_length=200)
    value: str | None = Field(None, max_length=MAX_VALUE_CHARACTERS)
    on: bool = Field(True, description="of `compare`: whether to")


class _Open:
    """A session of the page, and what belongs to it."""

    def __init__(self, session: Session, interrupt: threading.Event) -> None:
        self.session, self.interrupt = session, interrupt
        self.lock = threading.Lock()  # held by the command that runs
        self.trace: Trace | None = None
        self.is_comparing = False
        self.used_at = time.monotonic()


class _Sessions:
    """Those that are open: the least recently used, and those idle for long, are dropped."""

    def __init__(self, max_sessions: int, max_idle_s: float) -> None:
        self._max_sessions, self._max_idle_s = max_sessions, max_idle_s
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()

    def add(self, opened: _Open) -> str:
        key = secrets.token_urlsafe(16)
        with self._lock:
            now = time.monotonic()
            idle = [k for k, o in self._open.items() if now - o.used_at > self._max_idle_s]
            by_use = sorted(self._open, key=lambda k: self._open[k].used_at)
            surplus = by_use[: max(0, len(by_use) + 1 - self._max_sessions)]
            for old in {*idle, *surplus}:
                self._open.pop(old).interrupt.set()
            self._open[key] = opened
        return key

    def get(self, key: str) -> _Open:
        with self._lock:
            opened = self._open.get(key)
        if opened is None or time.monotonic() - opened.used_at > self._max_idle_s:
            raise HTTPException(404, "no such session: it was closed, or idle for long; begin anew")
        opened.used_at = time.monotonic()
        return opened

    def remove(self, key: str) -> None:
        with self._lock:
            opened = self._open.pop(key, None)
        if opened is not None:
            opened.interrupt.set()


def make_router(
    make_predictor: Callable[[], Predictor],
    tokenizer: Tokenizer,
    *,
    max_sessions: int = MAX_SESSIONS,
    max_idle_s: float = MAX_IDLE_S,
    max_frames: int = MAX_FRAMES,
    api_dependencies: Sequence[Any] = (),
    may_run: bool = True,
) -> APIRouter:
    """The page at ``/debugger`` and its API below ``/debugger/api``.

    Args:
        make_predictor: called for each session; may return the same one.
        tokenizer: the model's.
        max_sessions: open at once; beyond, the least recently used is dropped.
        max_idle_s: after which a session is dropped.
        max_frames: of a session.
        api_dependencies: of every path of the API, such as one that checks a key (the page sends
            what its user gives as a bearer token).
        may_run: whether programs may really be run, in the sandbox, to be compared with.
    """
    pages = APIRouter(tags=["debugger"])
    api = APIRouter(prefix="/debugger/api", tags=["debugger"], dependencies=[*api_dependencies])
    sessions, runs = _Sessions(max_sessions, max_idle_s), _Runs(may_run)

    @pages.get("/debugger", include_in_schema=False)
    def page() -> Response:
        return FileResponse(_STATIC / "debugger.html", headers=_HEADERS)

    @pages.get("/debugger/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, f"no file {name!r}")
        return FileResponse(_STATIC / name, headers=_HEADERS, media_type=_FILES[name])

    @api.post("/sessions", status_code=201)
    def begin(new: NewSession) -> dict[str, Any]:
        """Begins a session at its entry's call; the reply is its state, with its ``id``."""
        opened = _opened(new, make_predictor, tokenizer)
        error = ""
        if new.compare:
            error = _error_of(lambda: runs.compare(opened))
        stop, failed = _stop_of(opened.session.reset)
        state = _state(opened, stop, failed or error)
        return {"id": sessions.add(opened), **state}

    @api.get("/sessions/{key}")
    def look(key: str) -> dict[str, Any]:
        """The state now, also while a command runs."""
        return _state(sessions.get(key))

    @api.post("/sessions/{key}/commands")
    def run(key: str, command: Command) -> dict[str, Any]:
        """Runs one command and replies with the state; ``error`` says why it did not work."""
        opened = sessions.get(key)
        if not opened.lock.acquire(blocking=False):
            raise HTTPException(409, "a command is running; wait for it, or interrupt it")
        try:
            opened.interrupt.clear()
            if command.command == "compare":
                opened.is_comparing = False
                stop = None
                error = _error_of(lambda: runs.compare(opened)) if command.on else ""
            elif _adds_frames(command) and len(opened.session.steps) >= max_frames:
                stop, error = None, f"a session has at most {max_frames} frames; go back, or reset"
            else:
                stop, error = _stop_of(lambda: _run(opened.session, command))
        finally:
            opened.lock.release()
        return _state(opened, stop, error)

    @api.post("/sessions/{key}/interrupt", status_code=202)
    def interrupt(key: str) -> dict[str, bool]:
        """Makes the command that runs hand back after the frame that it is at."""
        sessions.get(key).interrupt.set()
        return {"interrupted": True}

    @api.delete("/sessions/{key}", status_code=204)
    def end(key: str) -> None:
        """Drops a session."""
        sessions.remove(key)

    router = APIRouter()
    router.include_router(pages)
    router.include_router(api)
    return router


def is_local(host: str) -> bool:
    """Whether a name or address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_local_name(request: Request) -> None:
    """Refuses what comes under another name of a local server.

    Another site's page may have its name lead here (DNS rebinding), and could run programs then.
    """
    host = request.url.hostname or ""
    if not is_local(host):
        raise HTTPException(
            403,
            f"the request is for {host!r}; expected localhost or its address: open the page so, "
            "or serve with --debugger predict",
        )


class _Runs:
    """Real runs, in one sandbox that is started when it is first needed."""

    def __init__(self, may_run: bool) -> None:
        self._may_run, self._tracer = may_run, None
        self._lock = threading.Lock()

    def compare(self, opened: _Open) -> Stop:
        """Runs the program, once, and compares from now on; raises ValueError, SandboxError."""
        if not self._may_run:
            raise ValueError("this server runs no programs; the comparison is switched off")
        if opened.trace is None:
            with self._lock:
                if self._tracer is None:
                    self._tracer = Tracer(_TRACE_LIMITS)
                opened.trace = run_for_comparison(opened.session.program, self._tracer)
            if not opened.session.steps:
                opened.session.entry_frame = opened.trace.frames[0]
        opened.is_comparing = True
        return Stop()


def _opened(
    new: NewSession, make_predictor: Callable[[], Predictor], tokenizer: Tokenizer
) -> _Open:
    interrupt = threading.Event()
    try:
        session = Session(
            program_of_source(new.source, new.call or None),
            make_predictor(),
            tokenizer,
            options=DebugOptions(
                temperature=new.temperature,
                top_p=new.top_p,
                seed=new.seed,
                constrain=new.constrain,
                max_command_frames=_COMMAND_FRAMES,
            ),
            interrupted=interrupt.is_set,
        )
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return _Open(session, interrupt)


def _adds_frames(command: Command) -> bool:
    return command.command in ("step", "next", "out", "return", "continue")


def _run(session: Session, command: Command) -> Stop:
    plain: dict[str, Callable[[], Stop]] = {
        "step": session.step,
        "next": session.next,
        "out": session.out,
        "return": session.until_return,
        "continue": session.resume,
        "back": session.back,
        "reset": session.reset,
        "retry": session.retry,
    }
    if command.command in plain:
        return plain[command.command]()
    if command.command == "rewind":
        return session.rewind(_given(command.frame, "frame"))
    if command.command == "set":
        return session.set(_given(command.name, "name"), _given(command.value, "value"))
    if command.command == "clear":
        session.clear(command.line)
        return Stop()
    point = Breakpoint(line=_given(command.line, "line"), condition=command.condition or None)
    session.add_breakpoint(point)
    return Stop()


def _given(value: Any, field: str) -> Any:
    if value is None:
        raise ValueError(f"the command needs {field!r}; it is not there")
    return value


def _stop_of(command: Callable[[], Stop]) -> tuple[Stop | None, str]:
    stops: list[Stop] = []
    error = _error_of(lambda: stops.append(command()))
    return (stops[0] if stops else None), error


def _error_of(action: Callable[[], Any]) -> str:
    """What is wrong, for the page; empty if it worked."""
    try:
        action()
    except (ValueError, PredictionError, SandboxError) as error:
        return str(error)
    return ""


def _state(opened: _Open, stop: Stop | None = None, error: str = "") -> dict[str, Any]:
    trace = opened.trace if opened.is_comparing else None
    return {
        **web_state.state_of(opened.session, trace),
        "comparing": opened.is_comparing,
        "busy": opened.lock.locked(),
        "why": None if stop is None else stop.why.value,
        "notes": [] if stop is None else [*stop.notes],
        "error": error,
    }
