"""Programs end or not as their records say, and what a model says of them is judged."""

import dataclasses
import difflib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from cwm_jax.evals.generated import termination
from cwm_jax.evals.generated.termination import FAMILIES, halting_programs, not_as_said
from cwm_jax.evals.problem import Answer, SetOptions
from cwm_jax.evals.sets import halting
from cwm_jax.evals.sets.halting import ENTRIES, MODES
from cwm_jax.trace.format import render_each
from cwm_jax.trace.tracer import TraceLimits, Tracer

PAIRS = len(FAMILIES)
PROGRAMS = [*halting_programs(7, 20 * PAIRS)]


def load(mode="direct", **values):
    values = {"pairs": str(PAIRS), "check": "none"} | values
    return ENTRIES["halting"].load(None, SetOptions(mode=mode, values=values))


def judged(problem, text, finish_reason="stop"):
    return problem.attempt().step(Answer(text=text, finish_reason=finish_reason))


def test_programs_of_every_family_end_or_run_on_as_said():
    assert not_as_said(PROGRAMS[: 4 * PAIRS]) == []


def test_a_wrong_record_is_found():
    wrong = [dataclasses.replace(p, halts=not p.halts) for p in PROGRAMS[:4]]
    right = PROGRAMS[4:6]
    raising = dataclasses.replace(
        PROGRAMS[0], name="raises", halts=True, code="def main():\n    return 1 / 0\n\n\nmain()\n"
    )
    assert not_as_said([*wrong, *right, raising]) == [*(p.name for p in wrong), "raises"]


def test_half_of_each_family_end_and_no_program_comes_twice():
    counts = Counter((p.family, p.halts) for p in PROGRAMS)
    assert counts == {(family, halts): 20 for family in FAMILIES for halts in (True, False)}
    assert len({p.code for p in PROGRAMS}) == len(PROGRAMS)
    assert len({p.name for p in PROGRAMS}) == len(PROGRAMS)
    assert all(p.reason for p in PROGRAMS)
    first = sum(p.halts for p in PROGRAMS[::2]) / len(PROGRAMS[::2])
    assert 0.4 < first < 0.6


def test_the_two_of_a_pair_differ_little():
    for one, other in zip(PROGRAMS[::2], PROGRAMS[1::2], strict=True):
        lines = difflib.ndiff(one.code.splitlines(), other.code.splitlines())
        changed = [line for line in lines if line[0] in "+-"]
        assert len(changed) == 2, (one.name, changed)


def test_the_same_seed_gives_the_same_bytes_in_any_process():
    code = (
        "import hashlib\n"
        "from cwm_jax.evals.sets import halting, retrieval, trace_prediction\n"
        "import sys; assert 'jax' not in sys.modules\n"
        "text = repr([*halting.halting_programs(7, 30)])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert [*halting_programs(7, 5)] == PROGRAMS[:10]
    assert {p.code for p in halting_programs(8, 5)}.isdisjoint(p.code for p in PROGRAMS[:10])


@pytest.mark.parametrize(
    ("text", "finish_reason", "said"),
    [
        ("yes", "stop", "yes"),
        (" No.\n", "stop", "no"),
        ("**Yes**", "stop", "yes"),
        ("It counts up.\n\nAnswer: no", "stop", "no"),
        ("yes\nno", "stop", "no"),
        ("yes", "length", None),
        ("yes and no", "stop", None),
        ("No doubt: it ends", "stop", None),
        ("", "stop", None),
    ],
)
def test_the_word_of_the_last_line_counts(text, finish_reason, said):
    for problem in load().problems[:2]:
        verdict = judged(problem, text, finish_reason)
        assert verdict.answer == said
        assert verdict.passed == (said == problem.labels["ends"])
        assert verdict.scores == {"answered": said is not None, "says_it_ends": said == "yes"}
        assert verdict.passed or verdict.reason


def test_who_always_says_the_same_is_right_for_one_label_alone():
    for said in ("yes", "no"):
        right = Counter(p.labels["ends"] for p in load().problems if judged(p, said).passed)
        assert right == {said: PAIRS}


@pytest.mark.parametrize("mode", MODES)
def test_prompts_show_the_program_and_ask_in_their_mode(mode):
    for problem in load(mode).problems:
        prompt = problem.attempt().start()
        assert prompt.think == (mode == "reasoning")
        text = prompt.text or prompt.messages[-1].content
        shown = text.replace("  # << START_OF_TRACE", "")
        assert problem.text.strip() in shown
        assert ("Answer: yes" in text) == (mode == "cot")
        assert (prompt.messages is None) == (mode == "trace")


def test_a_predicted_trace_says_what_it_comes_to():
    programs = {p.name: p for p in halting_programs(0, 3)}
    problems = load("trace", pairs="3").problems
    with Tracer(TraceLimits(max_events=300)) as tracer:
        for problem in problems:
            trace = tracer.trace(programs[problem.name].context)
            call, *rest = render_each(trace.frames)
            assert problem.attempt().start().text.endswith(call)
            halts = programs[problem.name].halts
            true = judged(problem, "".join(rest), "stop" if halts else "length")
            assert true.passed
            assert true.answer == ("yes" if halts else "no")
            assert judged(problem, "".join(rest[:-2]), "length").answer == "no"
            assert judged(problem, "".join(rest[:-1])).answer is None  # main is not left
            broken = judged(problem, "".join(rest[:-1]) + "<|line_sep|>")
            assert (broken.passed, broken.answer) == (False, None)
            assert broken.reason == "the trace ends before the entry is left"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_programs_is_asked_about_in_every_mode(tmp_path):
    script = {"id": 3, "code": "while True:\n    pass\n", "halts": False}
    ends = {"id": "b", "code": "def main():\n    return 1\n\nmain()", "halts": True}
    path = write(tmp_path / "p.jsonl", script, ends)
    for mode in MODES:
        loaded = ENTRIES["halting_file"].load(path, SetOptions(mode=mode))
        assert [p.name for p in loaded.problems] == ["3", "b"]
        assert [p.labels for p in loaded.problems] == [{"ends": "no"}, {"ends": "yes"}]
        assert "1 programs that end, 1 that do not" in loaded.about
        assert judged(loaded.problems[0], "no", "length" if mode == "trace" else "stop").passed


def test_a_script_without_main_is_traced_from_its_first_line(tmp_path):
    path = write(tmp_path / "p.jsonl", {"id": "s", "code": "x = 1\n", "halts": True})
    (problem,) = ENTRIES["halting_file"].load(path, SetOptions(mode="trace")).problems
    prompt = problem.attempt().start().text
    assert prompt.endswith("x = 1\n<|frame_sep|>")
    context = prompt.split("<|trace_context_start|>")[1].removesuffix("<|frame_sep|>")
    with Tracer() as tracer:
        text = tracer.trace(context).text
    assert judged(problem, text.removesuffix("<|end_of_text|>")).passed


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "code": "x"}, "p.jsonl:2: got .* expected an object with 'id', a string 'code'"),
        ({"id": 1, "code": "x", "halts": "yes"}, "p.jsonl:2: "),
        ({"id": "a", "code": "x", "halts": True}, "p.jsonl:2: id 'a' is there already"),
        ({"id": "b", "code": "x = (", "halts": True}, "program 'b' cannot be traced: "),
        (
            {"id": "b", "code": "'<|pad|>'", "halts": True},
            "program 'b' cannot be traced: .*special",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, row, message):
    path = write(tmp_path / "p.jsonl", {"id": "a", "code": "x = 1\n", "halts": True}, row)
    with pytest.raises(ValueError, match=message):
        ENTRIES["halting_file"].load(path, SetOptions(mode="trace"))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no line"):
        ENTRIES["halting_file"].load(write(tmp_path / "e.jsonl"), SetOptions(mode="direct"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": "collatz,halting"}, "has 'halting'; expected some of step_sign, "),
        ({"check": "some"}, "check=some; expected one of ending, all, none"),
        ({"pairs": "0"}, "'0'; expected a whole number, 1 or more"),
        ({"seed": "-1"}, "'-1'; expected a whole number, 0 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        load(**values)


def test_families_can_be_chosen():
    found = load(families="linked_nodes,collatz").problems
    assert {p.labels["family"] for p in found} == {"linked_nodes", "collatz"}


def test_a_family_that_has_no_further_pair_says_so(monkeypatch):
    pair = FAMILIES["collatz"](termination.Random(0))
    monkeypatch.setitem(FAMILIES, "collatz", lambda rng: pair)
    with pytest.raises(ValueError, match="family 'collatz' gave 1000 pairs that were there"):
        [*halting_programs(0, 2, ["collatz"])]


@pytest.mark.parametrize("check", ["ending", "all"])
def test_loading_runs_the_programs(monkeypatch, check):
    runs = next(p for p in PROGRAMS if not p.halts)
    wrong = dataclasses.replace(runs, halts=True)
    if check == "all":
        ends = next(p for p in PROGRAMS if p.halts)
        wrong = dataclasses.replace(ends, halts=False)
    monkeypatch.setattr(halting, "halting_programs", lambda *_: [wrong])
    with pytest.raises(AssertionError, match=wrong.name):
        load(check=check)
    load(check="none")
    if check == "all":
        load(check="ending")
