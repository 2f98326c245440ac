"""A tokenizer, a warm sandbox, and sessions whose model is the truth."""

import textwrap

import pytest
from oracle import Oracle

from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.frame_model import DebugOptions
from cwm_jax.debugger.session import Session
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.trace import TraceLimits, Tracer

TEXT = "def f(x, y):\n    return x\n    for i in range(n):\n        total += i\n" * 4


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([TEXT], 524)


@pytest.fixture(scope="session")
def tracer():
    with Tracer(TraceLimits(cpu_s=2.0, wall_s=5.0)) as tracer:
        yield tracer


@pytest.fixture
def debug(tokenizer, tracer):
    """Makes a session at its entry's call from a source; its ``_predictor`` is an `Oracle`."""

    def make(source: str, call: str | None = None, *, lies=None, **options) -> Session:
        program = program_of_source(textwrap.dedent(source), call)
        oracle = Oracle(tokenizer, tracer.trace(program.context).frames, lies or {})
        session = Session(program, oracle, tokenizer, options=DebugOptions(**options))
        session.reset()
        return session

    return make
