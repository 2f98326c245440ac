"""A worker whose requests are hostile programs, and the proof that it outlives each of them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwm_jax.sandbox import Limits, Outcome, Reply, Worker

PROGRAM = """
def handle(request):
    names = {}
    exec(compile(request, "hostile", "exec"), names)
    return repr(names.get("out")).encode()
"""
SHORT = Limits(
    cpu_s=2,
    wall_s=5,
    memory_bytes=128 << 20,
    scratch_bytes=4 << 20,
    processes=8,
    open_files=32,
    output_bytes=10_000,
    reply_bytes=100_000,
)
Call = Callable[..., Reply]


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="session")
def own_worker(program) -> Iterator[Worker]:
    with Worker(program, limits=SHORT) as worker:
        yield worker


@pytest.fixture(scope="session")
def namespace_worker(program) -> Iterator[Worker]:
    with _as_an_ordinary_user():
        worker = Worker(program, limits=SHORT)
    with worker:
        yield worker


@pytest.fixture
def own_call(own_worker) -> Iterator[Call]:
    """`call` in the kind of sandbox that this user gets."""
    yield from _watched_calls(own_worker)


@pytest.fixture(params=["own_worker", "namespace_worker"])
def call(request) -> Iterator[Call]:
    """``call(code, stdin=b"", **limits)``: the reply has ``repr(out)`` of the code.

    Root tries both kinds of sandboxes. In the other one the uid inside is still root's to the
    kernel, which then counts no processes and opens /proc further than to an ordinary user: tests
    of these take `own_call`.
    """
    worker = request.getfixturevalue(request.param)
    if request.param == "own_worker":
        yield from _watched_calls(worker)
    else:
        with _as_an_ordinary_user():
            yield from _watched_calls(worker)


@contextlib.contextmanager
def _as_an_ordinary_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cwm_jax.sandbox.bubblewrap.unique_uid", lambda: None)
        yield


def _watched_calls(worker: Worker) -> Iterator[Call]:
    def call(code: str, *, stdin: bytes = b"", **limits) -> Reply:
        return worker.call(code.encode(), stdin=stdin, limits=dataclasses.replace(SHORT, **limits))

    call("")  # a sandbox that the test before has lost is started again here
    first = worker._supervisor
    yield call
    after = call(
        "import os\nout = os.listdir('/tmp'), len([p for p in os.listdir('/proc') if p.isdigit()])"
    )
    assert (after.outcome, after.value) == (Outcome.OK, b"([], 2)"), after  # with the zygote
    assert worker._supervisor is first, "the first process was lost"
