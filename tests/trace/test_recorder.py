"""The recorder's limits and ends, where they depend on which events come when."""

import platform

import pytest

from cwm_jax.trace import TraceError, TraceLimits, Tracer
from cwm_jax.trace import tracer as tracer_module

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


@pytest.mark.parametrize("lines", [57, 58, 59, 60, 61])
def test_one_large_repr_does_not_cut_a_trace_whatever_event_it_falls_on(tracer, lines):
    body = f"    for i in range({lines}):\n        x = i\n    y = list(range(40000))\n    del y\n"
    trace = tracer.trace(f"def main():{MARK}\n{body}    z = 1\n    z = 2\n    return 1\n")
    assert trace.finished


def forged(**changes):
    """A program that answers in the recorder's place."""
    events = changes.pop("events", [[4, 0, []], [6, -1, 0]])
    answer = {"status": "finished", "message": "", "python": "3.11", "events": events}
    answer |= {"names": [["a"]], "reprs": ["1" * 1000]} | changes
    send = f"program.reply(json.dumps({answer}).encode())"
    return f"import json, program\n{send}\ndef f():{MARK}\n    1\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": []}, "expected a call"),
        ({"events": [[6, -1, 0]]}, "expected a call"),
        ({"events": [[4, 0, [0]]]}, "1 scopes left open"),
        ({"events": [[4, 0, [0]], *[[5, 0, [0]]] * 1000]}, "1001 events; expected at most 1000"),
        ({"raised": 1}, "no recorder writes"),
        ({"cut_reprs": "1"}, "no recorder writes"),
        ({"reprs": {}}, "no recorder writes"),
        ({"events": [[4, 0, [0]], [6, -1, 0], [6, -1, 0], [4, 0, [0]]]}, "left twice"),
        ({"events": [[4, 0, [0]], [4006, -1, 0]]}, "line 1001; expected one of"),
        ({"python": None}, "no recorder writes"),
    ],
)
def test_an_answer_that_no_recorder_writes_is_refused(tracer, changes, message):
    with pytest.raises(TraceError, match=message) as raised:
        tracer.trace(forged(**changes))
    assert raised.value.reason == "error"


def test_no_more_text_is_made_than_is_kept(tracer, monkeypatch):
    made, render_each = [], tracer_module.render_each

    def counted(frames):
        for text in render_each(frames):
            made.append(text)
            yield text

    monkeypatch.setattr(tracer_module, "render_each", counted)
    events = [[4, 0, [0]]] * 499 + [[6, -1, 0]] * 499  # calls show all locals: half a megabyte
    trace = tracer.trace(forged(events=events))
    assert trace.status == "bytes" and len(trace.text) <= 100_000
    assert len(made) == len(trace.frames) + 1 < 101


def test_the_version_is_that_before_the_program_ran(tracer):
    context = f"import sys\nsys.version = '2.7'\ndef f():{MARK}\n    pass\nf()\n"
    assert tracer.trace(context).python == platform.python_version()
