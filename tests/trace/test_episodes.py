"""Programs from files and scripts, what cannot be one of them, and the shared warm tracers."""

import dataclasses
import json

import pytest

from cwm_jax.trace import TraceError, TraceLimits, Tracer, trace_context
from cwm_jax.trace import tracer as tracer_module
from cwm_jax.trace.episodes import (
    Program,
    Uncallable,
    context_of_call,
    context_of_script,
    direct_document,
    direct_prompt,
    episode_from_json,
    jsonl_programs,
)


@pytest.fixture(scope="module")
def tracer():
    with Tracer(unsafe=True) as tracer:
        yield tracer


def last_locals(tracer, script, stdin):
    trace = tracer.trace(context_of_script(script, stdin))
    return [frame.local_vars for frame in trace.frames if frame.arg is None][-1]


@pytest.mark.parametrize(
    ("read", "stdin", "shown"),
    [
        ("sys.stdin.buffer.readline()", b"5\r\n", r"b'5\r\n'"),
        ("sys.stdin.read()", b"5\r\n6\r\n", r"'5\n6\n'"),
        ("input()", b"5\r\n", "'5'"),
        ("input()", "\u00e9\n".encode(), "'\u00e9'"),
        ("sys.stdin.buffer.read()", b"\xff", r"b'\xff'"),
    ],
)
def test_a_script_reads_its_standard_input_as_from_a_file(tracer, read, stdin, shown):
    assert last_locals(tracer, f"import sys\nx = {read}\npass\n", stdin)["x"] == shown


@pytest.mark.parametrize(
    "script", ['"""d"""; x = 1\n', "from __future__ import annotations; x = (\n1)\n"]
)
def test_a_script_without_a_line_to_feed_its_standard_input_is_refused(script):
    with pytest.raises(TraceError, match="line 1 goes on after a docstring"):
        context_of_script(script)


def programs(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(jsonl_programs(path))


@pytest.mark.parametrize("row", [{"code": None, "input": "1"}, {"code": "f = abs", "input": None}])
def test_a_line_without_code_or_input_is_refused(tmp_path, row):
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*expected an object with strings"):
        programs(tmp_path, {"code": "f = abs", "input": "1"}, row)


def test_code_too_deep_to_parse_is_a_program_that_has_no_trace(tmp_path, tracer):
    for code in ("(" * 100_000, "x = " + "-" * 100_000 + "1"):
        (program,) = programs(tmp_path, {"code": code, "input": "1"})
        with pytest.raises(TraceError) as raised:
            program.episodes(tracer)
        assert raised.value.reason == "syntax"


def test_a_function_named_as_the_entry_is_refused_by_name_and_the_rest_goes_on(tmp_path, tracer):
    code = "def main(x):\n    return x\n"
    refused, last, used, called = programs(
        tmp_path,
        {"code": code, "input": "1"},
        {"code": "def g(x):\n    return x\n" + code, "input": "1"},
        {"code": code + "def f(x):\n    return main(x)\n", "input": "1"},
        {"code": code + "def f(x):\n    return x\n", "input": "1"},
    )
    assert isinstance(called, Program)
    for item in (refused, last, used):
        assert isinstance(item, Uncallable)
        with pytest.raises(TraceError, match="rename it") as raised:
            item.episodes(tracer)
        assert raised.value.reason == "main"


def test_shared_tracers_are_closed_when_others_take_their_place(monkeypatch):
    closed = []

    class Recording(Tracer):
        def close(self):
            closed.append(self.limits.max_events)
            super().close()

    monkeypatch.setattr(tracer_module, "Tracer", Recording)
    monkeypatch.setattr(tracer_module, "_shared", {})
    monkeypatch.setattr(tracer_module, "_MAX_SHARED", 2)
    for max_events in (91, 92, 91, 93, 94):
        limits = TraceLimits(max_events=max_events)
        assert trace_context("x = 1  # << START_OF_TRACE\n", limits=limits, unsafe=True)
    assert closed == [92, 91]
    for shared in tracer_module._shared.values():
        shared.close()


HEAD = """import contextlib

class Once:
    def __iter__(self):
        return self
    def __next__(self):
        raise StopIteration

"""


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("return 'a'", repr("'a'")[1:-1]),
        ("pass", "None"),
        ("try: 1 / 0\n    except ZeroDivisionError: return 2", "2"),
        ("try: 1 / 0\n    finally: return 3", "3"),
        ("with contextlib.suppress(ZeroDivisionError):\n        1 / 0", "None"),
        ("raises = lambda: 1 / 0\n    raises()", None),
        ("1 / 0", None),
        ("try: 1 / 0\n    finally: x = 1", None),
        ("try: 1 / 0\n    except KeyError: pass", None),
        ("try: 1 / 0\n    except ZeroDivisionError: raise", None),
        ("with contextlib.nullcontext():\n        return 1 // 0", None),
        ("for x in Once(): pass", "None"),
    ],
)
def test_the_output_is_what_is_returned_and_not_the_none_after_an_exception(tracer, body, output):
    context = f"{HEAD}def main():  # << START_OF_TRACE\n    {body}\n"
    program = Program(name="p", context=context, source="script", origin="a test")
    (episode,) = program.episodes(tracer)
    assert episode.output == output


def test_a_cut_trace_has_no_output():
    context = "def main():  # << START_OF_TRACE\n    for i in range(9):\n        pass\n"
    program = Program(name="p", context=context, source="script", origin="a test")
    with Tracer(limits=TraceLimits(max_events=4)) as tracer:
        (episode,) = program.episodes(tracer)
    assert not episode.finished and episode.output is None


@pytest.mark.parametrize(
    ("context", "asked"),
    [
        (f"{HEAD}def main():  # << START_OF_TRACE\n    return 1\n", True),
        ("def f():  # << START_OF_TRACE\n    return 1\n\ndef main():\n    return f()\n", False),
        ("x = 1  # << START_OF_TRACE\ndef main():\n    return 1\nmain()\n", False),
        ("class A:\n    def main():  # << START_OF_TRACE\n        return 1\nA.main()\n", False),
    ],
)
def test_only_the_output_of_the_traced_main_is_asked_for(context, asked):
    prompt = direct_prompt(context)
    assert (prompt is not None) == asked
    assert prompt is None or prompt.endswith("    return 1\n\nassert main() == ")


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("'a' + chr(10)", repr("a\n")),
        ("'<' + '|end_of_text|>'", None),
        ("type('T', (), {'__repr__': lambda self: 'a' + chr(10) + 'b'})()", None),
        ("type('T', (), {'__repr__': lambda self: ''})()", None),
        ("1 / 0", None),
    ],
)
def test_an_output_that_is_not_one_line_of_plain_text_is_no_document(tracer, value, answer):
    context = f"def main():  # << START_OF_TRACE\n    return {value}\n"
    (episode,) = Program(name="p", context=context, source="script", origin="a test").episodes(
        tracer
    )
    document = direct_document(episode)
    expected = None if answer is None else (direct_prompt(context), f"{answer}\n<|end_of_text|>")
    assert document == expected


def test_what_a_file_does_as_a_script_is_left_out_of_the_context_of_a_call():
    code = "def f(x):\n    return x\n\nif __name__ == '__main__':\n    f(input())\ny = 2\n"
    context = context_of_call(code, "3")
    assert context == (
        "\ndef f(x):\n    return x\n\ny = 2\ndef main():  # << START_OF_TRACE\n    return f(3)\n"
    )
    broken = "if __name__ == '__main__':\n    ("
    assert broken in context_of_call(broken, "1")


def test_lines_with_one_code_are_in_one_group(tmp_path):
    rows = [("def f(x): return x", "1"), ("def f(x): return x", "2"), ("def f(x): return -x", "1")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"code": c, "input": i}) + "\n" for c, i in rows))
    first, second, third = (program.group for program in jsonl_programs(path))
    assert first == second != third


def test_an_episode_is_in_the_group_of_its_program(tracer):
    context = "def main():  # << START_OF_TRACE\n    return 1\n"
    program = Program(name="p", context=context, source="script", origin="a test")
    (alone,) = program.episodes(tracer)
    (shared,) = dataclasses.replace(program, group="file.py").episodes(tracer)
    assert (alone.group, shared.group) == ("p", "file.py")
    assert episode_from_json(shared.to_json()) == shared
