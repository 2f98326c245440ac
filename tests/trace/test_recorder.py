"""The recorder's limits and ends, where they depend on which events come when."""

import pytest

from cwm_jax.trace import TraceLimits, Tracer

MARK = "  # << START_OF_TRACE"


@pytest.fixture(scope="module")
def tracer():
    with Tracer(TraceLimits(max_events=1000, max_bytes=100_000, cpu_s=3.0)) as tracer:
        yield tracer


@pytest.mark.parametrize("lines", range(4))
def test_limits_hold_whatever_the_order_of_events(tracer, lines):
    # a line, a call, a line and a return in each round: line events alone come at odd numbers, or
    # at even ones
    before = "    x = 1\n" * lines
    trace = tracer.trace(f"def f(): return 1\ndef main():{MARK}\n{before}    while 1: f()\n")
    assert trace.status == "events" and len(trace.frames) == 1000


@pytest.mark.parametrize("leave", ["g.close()", "g.throw(KeyError)", "del g"])
def test_a_generator_that_is_left_at_a_yield_ends_its_trace(tracer, leave):
    context = f"def items():{MARK}\n    yield None\n\n\ng = items()\nnext(g)\n{leave}\n"
    trace = tracer.trace(context)
    assert trace.finished
    events = [frame.event.value for frame in trace.frames]
    assert events == ["call", "line", "return", "call", "exception", "return"]


def test_reprs_that_are_cut_or_come_again_count_towards_the_bytes(tracer):
    # what the trace shows is a few short texts; what is taken for it would be a gigabyte
    body = "    x = 'a' * 5_000_000\n    for i in range(100):\n        pass\n"
    trace = tracer.trace(f"def main():{MARK}\n{body}")
    assert trace.status == "bytes" and len(trace.frames) < 70
