"""Oracle: with a model that is always right, the commands do what pdb's do on the real run."""

from pathlib import Path

import pytest
from oracle import Oracle

from cwm_jax.debugger.breakpoints import Breakpoint
from cwm_jax.debugger.frame_model import DebugOptions
from cwm_jax.debugger.prediction import PredictionError
from cwm_jax.debugger.program import Program
from cwm_jax.debugger.session import CommandError, Session, Why
from cwm_jax.trace import TraceEvent
from cwm_jax.trace.format import split_prompt

CALL, LINE, RETURN, EXCEPTION = TraceEvent
GOLDEN = Path(__file__).parents[1] / "trace" / "golden"
GOLDEN_NAMES = sorted(file.stem for file in GOLDEN.glob("*.txt"))

NESTED = """\
def inner(n):
    return n + 1

def outer(n):
    a = inner(n)
    b = inner(a) + inner(a)
    return a + b

def main():  # << START_OF_TRACE
    x = outer(1)
    y = outer(x)
    return y
"""
FIB = """\
def fib(n):
    if n < 2:
        return n
    return fib(n - 1) + fib(n - 2)
"""


def golden_session(name: str, tokenizer, tracer) -> Session:
    context, _ = split_prompt((GOLDEN / f"{name}.txt").read_text())
    program = Program(context)
    frames = tracer.trace(context).frames
    session = Session(program, Oracle(tokenizer, frames), tokenizer, entry_frame=frames[0])
    session.reset()
    return session


def truth(session: Session) -> list:
    return session._model._predictor.frames


def at(session: Session) -> tuple[str, str, int]:
    step = session.current
    return step.frame.event.value, step.frame.source_line.strip(), step.depth


def walk_to(session: Session, line: str) -> None:
    while at(session)[1] != line:
        session.step()


def scopes_of(frames) -> list[tuple[int, ...]]:
    """Of each frame the numbers of the calls that are open at it."""
    opened, scopes = (), []
    for number, frame in enumerate(frames):
        if frame.event is CALL:
            opened = (*opened, number)
        scopes.append(opened)
        if frame.event is RETURN:
            opened = opened[:-1]
    return scopes


def true_next(frames, number: int) -> int:
    """Of a frame, by the scopes of the real run alone."""
    scopes = scopes_of(frames)
    own = scopes[number][:-1] if frames[number].event is RETURN else scopes[number]
    for after in range(number + 1, len(frames)):
        if scopes[after] == own[: len(scopes[after])] and frames[after].event is not CALL:
            return after
    return len(frames)


def true_return(frames, number: int) -> int:
    own = scopes_of(frames)[number]
    ends = (n for n in range(number, len(frames)) if scopes_of(frames)[n] == own)
    return next(n for n in ends if frames[n].event is RETURN)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_steps_walk_the_real_run_and_know_its_lines(name, tokenizer, tracer):
    session = golden_session(name, tokenizer, tracer)
    frames = truth(session)
    while session.step().why is Why.DONE:
        pass
    assert session.finished
    assert [step.frame for step in session.steps] == frames
    assert not [step.problems for step in session.steps if step.problems]
    for step, frame in zip(session.steps, frames, strict=True):
        assert frame.lineno in step.lines, frame
        assert step.frame.lineno in (None, frame.lineno)
    uncertain = [step.frame for step in session.steps if step.frame.lineno is None]
    assert len(uncertain) <= len(frames) // 10, uncertain


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_next_and_return_are_those_of_the_real_run(name, tokenizer, tracer):
    session = golden_session(name, tokenizer, tracer)
    frames = truth(session)
    suspended = session.program.entry_suspends
    steps = []
    while session.step().why is Why.DONE:
        steps = session.steps
    for number, frame in enumerate(frames[:-1]):
        if suspended and frame.event is RETURN and steps[number].depth == 0:
            continue
        session.steps, session.finished = steps[: number + 1], False
        expected = true_next(frames, number)
        session.next()
        assert session.current.frame == frames[expected], number
        assert session.current.lines == steps[expected].lines
        if frame.event is RETURN:
            continue
        session.steps, session.finished = steps[: number + 1], False
        session.until_return()
        assert session.current.frame == frames[true_return(frames, number)], number


def test_out_ignores_the_returns_of_nested_calls(debug):
    session = debug(NESTED)
    walk_to(session, "a = inner(n)")
    stop = session.out()
    assert at(session) == ("line", "y = outer(x)", 1)
    assert session.current.local_vars == {"x": "8"}
    assert [note.split(":")[0] for note in stop.notes] == ["stepped over inner()"] * 3


def test_out_of_a_callee_passes_over_the_rest_of_its_callers_line(debug):
    session = debug(FIB, "fib(3)")
    while session.current.depth < 4:  # main, fib(3), fib(2), fib(1)
        session.step()
    session.out()
    assert at(session) == ("return", "return fib(n - 1) + fib(n - 2)", 2)
    assert session.current.frame.arg == "1"
    session.out()
    assert at(session)[::2] == ("return", 1) and session.current.frame.arg == "2"


def test_next_says_that_it_asked_for_a_return(debug):
    session = debug(NESTED)
    session.step()
    assert session.next().notes == (
        "stepped over outer(): its return was asked for, its lines were not",
    )
    assert [s.frame.event for s in session.steps[-3:]] == [CALL, RETURN, LINE]
    assert session.steps[-2].forced is RETURN
    assert session._model._predictor.prompts[-2].endswith("<|frame_sep|><|return_sep|>")


def test_a_step_from_a_call_enters_it(debug):
    session = debug(NESTED)
    session.step()
    assert session._model._predictor.prompts[-1].endswith("<|line_sep|>")


def test_a_generator_that_is_closed_is_not_forced_to_a_line(debug):
    source = """\
        def count():
            yield 1
            yield 2
        def main():  # << START_OF_TRACE
            return any(x == 1 for x in count())
        """
    session = debug(source)
    stop = session.resume()
    assert stop.why is Why.END
    assert [s.frame for s in session.steps] == truth(session)
    exits = [s for s in session.steps if s.frame.arg == "GeneratorExit()"]
    assert exits, "the real run closes its generators"


def test_a_generator_that_is_the_entry_goes_on_after_its_yields(debug):
    source = """\
        def count():  # << START_OF_TRACE
            for i in range(2):
                yield i
        list(count())
        """
    session = debug(source)
    assert session.until_return().why is Why.DONE
    assert session.current.frame.arg == "0" and not session.finished
    assert session.next().why is Why.DONE
    assert at(session) == ("call", "yield i", 1)
    assert session.resume().why is Why.END
    assert [s.frame for s in session.steps] == truth(session)


CAUGHT = """\
def low(n):
    raise ValueError(n)

def middle(n):
    low(n)
    return 0

def main():  # << START_OF_TRACE
    try:
        middle(1)
    except ValueError as error:
        found = str(error)
    return found
"""


def test_out_of_a_function_that_an_exception_leaves(debug):
    session = debug(CAUGHT)
    walk_to(session, "raise ValueError(n)")
    session.step()
    assert at(session)[0] == "exception" and session.current.depth == 3
    session.until_return()
    assert at(session) == ("return", "raise ValueError(n)", 2)
    session.next()
    assert at(session) == ("exception", "low(n)", 2)
    session.out()
    assert at(session) == ("exception", "middle(1)", 1)
    session.next()
    assert at(session) == ("line", "except ValueError as error:", 1)


DUPLICATES = """\
def main():  # << START_OF_TRACE
    x = 1
    y = 0
    x = 1
    y += x
    x = 1
    if y == 1:
        z = 2
    else:
        z = 2
    for i in range(2):
        y += x
    return A_TRACE(y)
def A_TRACE(y):
    x = 1
    return y
"""


def test_lines_with_equal_text_are_told_apart_by_the_flow(debug):
    session = debug(DUPLICATES)
    session.resume()
    true_lines = [frame.lineno for frame in truth(session)]
    places = [step.lines for step in session.steps]
    either = {8: [8, 10], 10: [8, 10]}
    assert places == [either.get(line, [line]) for line in true_lines]
    assert next(s for s in session.steps if s.lines == [8, 10]).frame.lineno is None
    assert any("return A_TRACE(y)\n" in s.frame.source_line for s in session.steps)


def test_equal_methods_are_told_apart_by_their_arguments_and_lines(debug):
    source = """\
        class A:
            def __init__(self, x):
                self.x = x
        class B:
            def __init__(self, x, y=2):
                self.y = y
        class C:
            def __init__(self, x):
                self.z = x
        def main():  # << START_OF_TRACE
            return A(1).x, B(2).y, C(3).z
        """
    session = debug(source)
    session.resume()
    calls = [s for s in session.steps if "__init__" in s.frame.source_line]
    assert [s.lines for s in calls] == [[2, 8], [5], [2, 8]]
    lines = [s.frame.lineno for s in session.steps if "self." in s.frame.source_line]
    assert lines == [3, 3, 6, 6, 9, 9]


HANDLERS = """\
class A:
    def __init__(
        self, a
    ):
        self.a = a
class B:
    def __init__(
        self, b
    ):
        self.a = b
def main():  # << START_OF_TRACE
    try:
        A(1).missing
    except AttributeError:
        x = 1
    try:
        B(1).missing
    except AttributeError:
        y = 1
    if y == 1:
        z = 1
        return z
    else:
        z = 2
        return z
"""


def test_handlers_returns_and_parameters_tell_lines_apart(debug):
    session = debug(HANDLERS)
    session.resume()
    assert [s.frame.lineno for s in session.steps] == [f.lineno for f in truth(session)]


def test_only_the_marker_itself_is_taken_off_a_line(debug):
    source = "def main():  # << START_OF_TRACE\n    START_OF_TRACE = 1\n    return START_OF_TRACE\n"
    session = debug(source)
    assert session.program.lines[0] == "def main():\n"
    session.resume()
    assert at(session)[1] == "return START_OF_TRACE"


def test_continue_stops_at_breakpoints_and_conditions(debug):
    session = debug(FIB, "fib(4)")
    session.add_breakpoint(Breakpoint(line=4, condition="n == 1"))
    assert session.resume().why is Why.BREAKPOINT
    assert session.current.frame.lineno == 4 and session.current.local_vars == {"n": "1"}
    session.clear(4)
    session.add_breakpoint(Breakpoint(line=5, condition="n % 2 == 1 and n > 2", temporary=True))
    assert session.resume().why is Why.END  # it lies behind
    while session.steps[-1].depth < 2:
        session.back()
    session.rewind(0)
    assert session.resume().why is Why.BREAKPOINT
    assert session.current.local_vars == {"n": "3"}
    assert not session.breakpoints
    assert session.resume().why is Why.END
    assert [s.frame for s in session.steps] == truth(session)


def test_a_breakpoint_on_a_function_stops_at_its_calls(debug):
    session = debug(FIB, "fib(2)")
    session.add_breakpoint(Breakpoint(line=2))
    seen = []
    while session.resume().why is Why.BREAKPOINT:
        seen.append((session.current.frame.event, session.current.local_vars["n"]))
    assert seen == [(CALL, "2"), (CALL, "1"), (CALL, "0")]


def test_a_condition_without_a_value_stops_and_says_so(debug):
    session = debug(FIB, "fib(2)")
    session.add_breakpoint(Breakpoint(line=3, condition="missing > 1"))
    stop = session.resume()
    assert stop.why is Why.BREAKPOINT
    assert stop.notes == ("its condition has no value: 'missing' is no local here; there are: n",)


@pytest.mark.parametrize(
    ("breakpoint", "message"),
    [
        (Breakpoint(line=99), "expected 1 to 7"),
        (Breakpoint(line=1), "blank"),
        (Breakpoint(line=3, condition="open('x')"), "Call is not evaluated"),
        (Breakpoint(line=3, condition="n ="), "no expression"),
    ],
)
def test_breakpoints_that_cannot_be_are_refused(debug, breakpoint, message):
    session = debug(FIB, "fib(2)")
    with pytest.raises(ValueError, match=message):
        session.add_breakpoint(breakpoint)


def test_back_takes_back_all_that_a_command_added(debug):
    session = debug(NESTED)
    session.step()
    before = session.steps
    session.next()
    assert len(session.steps) == len(before) + 3
    session.back()
    assert session.steps == before
    session.back()
    assert len(session.steps) == 1
    with pytest.raises(CommandError, match="nothing to take back"):
        session.back()


def test_a_set_variable_is_what_the_model_reads_also_after_back(debug):
    session = debug(NESTED)
    oracle = session._model._predictor
    walk_to(session, "a = inner(n)")
    untouched = [s.token_ids for s in session.steps[:-1]]
    session.step()
    session.back()
    session.set("n", "[1, 'é']")
    assert [s.token_ids for s in session.steps[:-1]] == untouched
    assert session.current.origin == "edited"
    assert session.current.local_vars == {"n": "[1, 'é']"}
    session.step()
    assert r'<|line_sep|>{"n": "[1, ' in oracle.prompts[-1]
    session.back()
    session.back()
    assert session.current.local_vars == {"n": "1"}
    session.step()
    assert "[1, " not in oracle.prompts[-1]


def test_a_set_frame_keeps_what_is_unchanged_short(debug):
    session = debug(NESTED)
    walk_to(session, "b = inner(a) + inner(a)")
    assert session.current.local_vars == {"n": "1", "a": "2"}
    session.next()
    session.set("b", "70")
    text = session._model._tokenizer.decode(session.current.token_ids)
    assert text.startswith('<|line_sep|>{"n": "1", "a": "2", "b": "70"}')
    session.rewind(3)
    session.set("m", "x y")
    text = session._model._tokenizer.decode(session.current.token_ids)
    assert text.startswith('<|line_sep|>{"n": "..", "m": "x y"}')


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("n", "", "empty"), ("a b", "1", "no name"), ("n", "..", "unchanged")],
)
def test_values_that_cannot_be_set_are_refused(debug, name, value, message):
    session = debug(FIB, "fib(2)")
    before = session.steps
    with pytest.raises(CommandError, match=message):
        session.set(name, value)
    assert session.steps is before


def test_a_return_frame_has_nothing_to_set(debug):
    session = debug(FIB, "fib(0)")
    session.until_return()
    with pytest.raises(CommandError, match="return frame"):
        session.set("n", "1")


def test_reset_begins_again_and_can_be_taken_back(debug):
    session = debug(NESTED)
    session.resume()
    steps = session.steps
    session.reset()
    assert len(session.steps) == 1 and not session.finished
    session.back()
    assert session.steps == steps and session.finished


def test_arguments_that_nobody_gives_are_the_models(debug, tokenizer):
    source = "def f(n):  # << START_OF_TRACE\n    return n\nf(7)\n"
    session = debug(source)
    assert session._model._predictor.prompts[-1].endswith("<|frame_sep|><|call_sep|>")
    assert session.current.local_vars == {"n": "7"}
    assert session.current.origin == "predicted"
    assert debug("def main():\n    return 1\n").current.origin == "given"


LIES = {
    "a text that is no frame": ("hello<|frame_sep|>", "wrote no frame"),
    "a frame without end": ("<|line_sep|>{}<|action_sep|>" + "x" * 200, "no end of a frame"),
    "an end inside a function": ("<|end_of_text|>", "functions have not returned"),
    "an end inside a frame": ("<|line_sep|>{<|end_of_text|>", "inside a frame"),
    "no token": ("", "answered no token"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_cannot_be_read_is_an_error_and_can_be_asked_for_again(debug, name):
    text, message = LIES[name]
    session = debug(NESTED, lies={2: text}, max_frame_tokens=100, seed=5)
    session.step()
    before = session.steps
    with pytest.raises(PredictionError, match=message):
        session.step()
    assert session.steps is before
    session._model._predictor.lies.clear()
    session.step()
    assert at(session)[:2] == ("call", "def outer(n):")
    assert [r.seed for r in session._model._predictor.requests] == [5, 6, 7]


def test_a_retry_that_fails_changes_nothing(debug):
    source = """\
        def count():  # << START_OF_TRACE
            yield 1
        list(count())
        """
    session = debug(source)
    assert session.resume().why is Why.END
    steps = session.steps
    for lie in ("hello<|frame_sep|>", "<|end_of_text|>"):
        session._model._predictor.lies[len(steps) - 1] = lie
        with pytest.raises(PredictionError):
            session.retry()
        assert session.steps is steps and session.finished
    session._model._predictor.predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.retry()
    assert session.steps is steps and session.finished
    session.back()
    assert len(session.steps) == 1, "not what resume did, but a retry was taken back"


def interrupt(request):
    raise KeyboardInterrupt


def test_a_given_first_frame_is_not_predicted_also_when_it_was_set(debug):
    session = debug("def main():\n    return 1\n")
    for _ in range(2):
        steps = session.steps
        with pytest.raises(CommandError, match="is given, not predicted"):
            session.retry()
        assert session.steps is steps and not session._model._predictor.requests
        session.set("x", "1")
    predicted = debug("def f(n):  # << START_OF_TRACE\n    return n\nf(7)\n")
    predicted.set("n", "5")
    predicted.retry()
    assert predicted._model._predictor.prompts[-1].endswith("<|frame_sep|><|call_sep|>")
    assert predicted.current.local_vars == {"n": "7"}


WRONG_FRAMES = {
    "locals that are no JSON": ("<|line_sep|>{n: 1}<|action_sep|>    a = inner(n)\n", "not JSON"),
    "an unchanged value of nothing": (
        '<|line_sep|>{"n": "1", "q": ".."}<|action_sep|>    a = inner(n)\n',
        "has no value for it",
    ),
    "a line of another program": ('<|line_sep|>{"n": "1"}<|action_sep|>    c = 1\n', "no line of"),
    "another indentation": ('<|line_sep|>{"n": "1"}<|action_sep|>a = inner(n)\n', "no line of"),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_a_malformed_frame_is_a_problem_and_stops_the_run(debug, name):
    text, message = WRONG_FRAMES[name]
    session = debug(NESTED, lies={3: text + "<|frame_sep|>"})
    session.step()
    assert session.resume().why is Why.PROBLEM
    assert len(session.steps) == 4
    assert any(message in problem for problem in session.current.problems)
    assert session.current.local_vars in ({}, {"n": "1"}, {"n": "1", "q": ".."})
    session._model._predictor.lies.clear()
    assert session.retry().why is Why.DONE
    assert at(session)[:2] == ("line", "a = inner(n)") and not session.current.problems


def test_an_unresolved_value_does_not_keep_others_from_being_set(debug):
    text = '<|line_sep|>{"n": "1", "q": ".."}<|action_sep|>    a = inner(n)\n<|frame_sep|>'
    session = debug(NESTED, lies={3: text})
    session.resume()
    assert session.current.unresolved == ["q"]
    session.set("n", "5")
    rendered = session._model._tokenizer.decode(session.current.token_ids)
    assert rendered.startswith('<|line_sep|>{"n": "5", "q": ".."}')
    session.set("q", "6")
    assert not session.current.problems


def test_a_frame_after_the_end_is_none(debug):
    session = debug(FIB, "fib(1)")
    assert session.resume().why is Why.END
    steps = session.steps
    for command in (session.step, session.next, session.out, session.resume):
        assert command().why is Why.END
        assert session.steps is steps


def test_a_long_run_hands_back_and_goes_on(debug):
    session = debug(FIB, "fib(4)", max_command_frames=7)
    assert session.resume().why is Why.LIMIT
    assert len(session.steps) == 8
    while session.resume().why is Why.LIMIT:
        pass
    assert session.finished and [s.frame for s in session.steps] == truth(session)


def test_actions_are_constrained_to_the_programs_lines(debug, tokenizer):
    session = debug(FIB, "fib(1)")
    session.step()
    constraint = session._model._predictor.requests[-1].constraint
    assert {tokenizer.decode(choice) for choice in constraint.choices} == {
        line for line in session.program.lines if line.strip()
    }
    free = debug(FIB, "fib(1)", constrain=False)
    free.step()
    assert free._model._predictor.requests[-1].constraint is None


def test_an_interrupted_run_keeps_its_frames(debug, tokenizer):
    session = debug(FIB, "fib(4)")
    session._interrupted = lambda: len(session.steps) > 5
    assert session.resume().why is Why.INTERRUPTED
    assert len(session.steps) == 6
    session.back()
    assert len(session.steps) == 1


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"max_frame_tokens": 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="expected"):
        DebugOptions(**options)


def test_a_line_of_another_function_is_a_problem(debug):
    text = '<|line_sep|>{"n": "1"}<|action_sep|>    x = outer(1)\n<|frame_sep|>'
    session = debug(NESTED, lies={3: text})
    assert session.resume().why is Why.PROBLEM
    assert session.current.problems == ("'x = outer(1)' is no line of outer(), which is executing",)
