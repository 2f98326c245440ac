"""Predicted frames beside the real run: the first difference, steps over calls, edits."""

import pytest
from oracle import DOUBLES as SOURCE

from cwm_jax.debugger.comparison import Verdict, compare, first_difference, run_for_comparison
from cwm_jax.debugger.entry import program_of_source
from cwm_jax.debugger.program import Program
from cwm_jax.trace import TraceError


@pytest.fixture
def truth(tracer):
    return lambda session: run_for_comparison(session.program, tracer)


def verdicts(session, trace) -> str:
    marks = {Verdict.SAME: "=", Verdict.DIFFERENT: "x", Verdict.UNKNOWN: "?"}
    return "".join(marks[one.verdict] for one in compare(session.steps, trace))


def test_the_truth_is_the_same_frame_by_frame(debug, truth):
    session = debug(SOURCE)
    session.resume()
    assert verdicts(session, truth(session)) == "=" * 13
    assert first_difference(compare(session.steps, truth(session))) is None


def test_a_step_over_a_call_stands_beside_the_calls_real_return(debug, truth):
    session = debug(SOURCE)
    session.step()
    session.next()
    session.next()
    assert [s.frame.event.value for s in session.steps].count("return") == 2
    assert verdicts(session, truth(session)) == "=" * 8


def test_a_wrong_local_is_named_and_the_next_frames_are_compared(debug, truth):
    lie = '<|line_sep|>{"n": "1", "m": "3"}<|action_sep|>    return m\n<|frame_sep|>'
    session = debug(SOURCE, lies={4: lie})
    session.resume()
    compared = compare(session.steps, truth(session))
    assert verdicts(session, truth(session)) == "====x" + "=" * 8
    assert first_difference(compared) == 4
    assert (compared[4].wrong, compared[4].wrong_locals) == (("locals",), ("m",))
    assert compared[4].true.local_vars == {"n": "1", "m": "2"}


def test_after_another_way_nothing_is_compared(debug, truth):
    lie = '<|line_sep|>{"n": "1"}<|action_sep|>    return m\n<|frame_sep|>'
    session = debug(SOURCE, lies={3: lie})
    session.resume()
    compared = compare(session.steps, truth(session))
    assert verdicts(session, truth(session))[:6] == "===x??"
    assert compared[3].wrong == ("line",) and compared[3].is_first
    assert compared[4].why_unknown == "frame 3 went another way than the real run"


def test_a_wrong_value_and_a_wrong_event(debug, truth):
    lie = '<|return_sep|><|action_sep|>    return x + y\n<|arg_sep|>"7"<|frame_sep|>'
    session = debug(SOURCE, lies={12: lie})
    session.resume()
    assert compare(session.steps, truth(session))[-1].wrong == ("value",)
    early = '<|return_sep|><|action_sep|>    m = n * 2\n<|arg_sep|>"7"<|frame_sep|>'
    session = debug(SOURCE, lies={4: early})
    session.resume()
    assert compare(session.steps, truth(session))[4].wrong == ("event", "line")


def test_after_an_edit_nothing_is_compared(debug, truth):
    session = debug(SOURCE)
    for _ in range(3):
        session.step()
    session.set("n", "5")
    session.step()
    compared = compare(session.steps, truth(session))
    assert verdicts(session, truth(session)) == "===??"
    assert compared[4].why_unknown == "frame 3 was edited"


def test_an_edit_that_mends_the_prediction_is_compared_on(debug, truth):
    lie = '<|line_sep|>{"n": "1", "m": "3"}<|action_sep|>    return m\n<|frame_sep|>'
    session = debug(SOURCE, lies={4: lie})
    for _ in range(4):
        session.step()
    assert verdicts(session, truth(session)) == "====x"
    session.set("m", "2")
    session.step()
    assert verdicts(session, truth(session)) == "======"


def test_a_program_without_a_trace_says_why(tracer):
    program = program_of_source("def main():\n    pass\nraise ValueError(3)\n")
    with pytest.raises(ValueError, match=r"nothing to compare with.*ValueError"):
        run_for_comparison(program, tracer)


def test_the_entry_is_the_marked_line_then_main_then_the_script():
    marker = "  # << START_OF_TRACE"
    assert program_of_source(SOURCE).context == SOURCE.replace("main():", f"main():{marker}")
    marked = SOURCE.replace("double(n):", f"double(n):{marker}")
    assert program_of_source(marked).context == marked
    assert program_of_source(SOURCE.replace("main", "start"), "double(3)").context.endswith(
        f"def main():{marker}\n    return double(3)\n"
    )
    script = program_of_source("x = 1\n")
    assert script.context.endswith("x = 1\n") and script.marked == 1
    assert script.entry_frame is not None
    with pytest.raises(ValueError, match="expected one of its names"):
        program_of_source(SOURCE.replace("main", "start"), "triple(3)")
    with pytest.raises(TraceError, match="SyntaxError"):
        program_of_source("def f(:\n")
    with pytest.raises(ValueError, match="special token"):
        Program(f"def f():{marker}\n    return '<|frame_sep|>'\n")
