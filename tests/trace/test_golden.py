"""Golden: traces of short programs equal the texts in golden/, and those of a naive tracer.

``python tests/trace/test_golden.py`` writes the texts anew, for a look at what changed.
"""

import sys
from pathlib import Path

import pytest
from golden_contexts import CONTEXTS
from naive_tracer import naive_text

from cwm_jax.trace import Tracer, parse_frames, parse_trace, render_frames, render_prompt
from cwm_jax.trace.format import split_prompt

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tracer():
    with Tracer() as tracer:
        yield tracer


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the texts are CPython 3.11's")
@pytest.mark.parametrize("name", CONTEXTS)
def test_traces_equal_the_golden_texts(tracer, name):
    trace = tracer.trace(CONTEXTS[name])
    assert trace.finished
    assert render_prompt(trace.context) + trace.text == golden(name)


@pytest.mark.parametrize("name", CONTEXTS)
def test_traces_equal_the_naive_tracers(tracer, name):
    trace = tracer.trace(CONTEXTS[name])
    assert render_prompt(trace.context) + trace.text == naive_text(CONTEXTS[name])


@pytest.mark.parametrize("name", CONTEXTS)
def test_golden_texts_parse_and_render_to_themselves(name):
    context, text = split_prompt(golden(name))
    assert context == CONTEXTS[name]
    assert render_frames(parse_frames(text)) == text
    assert parse_trace(text).finished


@pytest.mark.parametrize("name", CONTEXTS)
def test_frames_parse_back_from_their_text(tracer, name):
    trace = tracer.trace(CONTEXTS[name])
    assert parse_frames(trace.text) == trace.frames
    lines = trace.context.replace("  # << START_OF_TRACE", "").splitlines(keepends=True)
    assert all(frame.source_line == lines[frame.lineno - 1] for frame in trace.frames)


def test_every_golden_text_has_a_context():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(CONTEXTS)


if __name__ == "__main__":
    with Tracer() as writer:
        for name, context in CONTEXTS.items():
            text = render_prompt(context) + writer.trace(context).text
            (GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8")
