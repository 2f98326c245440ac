"""Law: every metric counts what it says, on frames written by hand."""

import dataclasses

import pytest

from cwm_jax.evals.traces.metrics import (
    FrameScore,
    ScoredFrame,
    score_frame,
    score_trace,
    summarise,
)
from cwm_jax.trace import TraceEvent, TraceFrame

CALL, LINE, RETURN, _ = TraceEvent


def line(action="x = 1\n", **values):
    return TraceFrame(LINE, action, values)


TRUE = line(a="1", b="2")
EXACT = FrameScore(valid=True, state=True, keys=1.0, key_values=1.0, action=True, exact=True)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (TRUE, EXACT),
        (line("y\n", a="1", b="2"), FrameScore(valid=True, state=True, keys=1, key_values=1)),
        (line(a="1", b="3"), FrameScore(valid=True, keys=1, key_values=0.5, action=True)),
        (line(a="1"), FrameScore(valid=True, keys=0.5, key_values=0.5, action=True)),
        (line(a="1", c="2"), FrameScore(valid=True, keys=1 / 3, key_values=1 / 3, action=True)),
        (line(), FrameScore(valid=True, action=True)),
        (TraceFrame(CALL, "x = 1\n", {"a": "1", "b": "2"}), FrameScore(valid=True)),
        (None, FrameScore()),
    ],
)
def test_a_frame_is_scored_part_by_part(predicted, expected):
    assert score_frame(TRUE, predicted, valid=True) == expected


def test_the_order_of_locals_does_not_count():
    assert score_frame(TRUE, line(b="2", a="1"), valid=True) == EXACT


def test_the_state_of_a_return_is_its_value():
    true = TraceFrame(RETURN, "return x\n", arg="1")
    nothing = {"keys": None, "key_values": None}
    assert score_frame(true, true, valid=True) == dataclasses.replace(EXACT, **nothing)
    wrong = score_frame(true, TraceFrame(RETURN, "return x\n", arg="2"), valid=True)
    assert wrong == FrameScore(valid=True, action=True, **nothing)
    assert score_frame(true, None, valid=True) == FrameScore(**nothing)


def test_a_malformed_frame_is_never_exact():
    score = score_frame(TRUE, TRUE, valid=False)
    assert score.action
    assert score.keys == 1.0
    assert not score.valid
    assert not score.state
    assert not score.exact


def test_means_of_names_are_over_frames_with_locals():
    value = FrameScore(valid=True, keys=None, key_values=None)
    means = summarise([ScoredFrame(event="return", difficulty=None, score=value)])["overall"]
    assert "keys" not in means
    frames = [
        ScoredFrame(event=e, difficulty=None, score=s)
        for e, s in [("return", value), ("line", EXACT)]
    ]
    assert summarise(frames)["overall"]["keys"] == 1.0


def test_a_trace_diverges_at_its_first_frame_that_differs():
    true = [line(a="1"), line(a="2"), line(a="3")]
    nothing = frozenset()
    assert score_trace(true, true, malformed=nothing)[1] is None
    assert score_trace(true, true[:2], malformed=nothing)[1] == 2
    assert score_trace(true, [*true, TRUE], malformed=nothing)[1] == 3
    assert score_trace(true, [true[0], None, true[2]], malformed=nothing)[1] == 1
    assert score_trace(true, true, malformed=frozenset({1}))[1] == 1
    scores, _ = score_trace(true, true[:1], malformed=nothing)
    assert [score.exact for score in scores] == [True, False, False]


def test_means_are_taken_over_all_frames_each_event_and_each_difficulty():
    frames = [
        ScoredFrame(event="line", difficulty=2, score=EXACT),
        ScoredFrame(event="line", difficulty=1, score=FrameScore()),
        ScoredFrame(event="call", difficulty=None, score=EXACT),
    ]
    summary = summarise(frames)
    assert list(summary) == ["overall", "event=call", "event=line", "difficulty=1", "difficulty=2"]
    assert summary["overall"]["frames"] == 3
    assert summary["overall"]["action"] == pytest.approx(2 / 3)
    assert summary["event=line"]["state"] == 0.5
    assert summary["difficulty=1"] == dict.fromkeys(
        ["valid", "state", "keys", "key_values", "action", "exact"], 0.0
    ) | {"frames": 1}
