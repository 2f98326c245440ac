"""Oracle and fault: predictions about functions are judged by running them, hostile ones too."""

import pytest
from evals.set_files import HOSTILE_FILES, answered, lines, options, prompt_of, written

from cwm_jax.evals.sets.code.cruxeval import canonical, read_rows
from cwm_jax.evals.sets.cruxeval import ENTRIES
from cwm_jax.rl.envs.code.inside import encode
from cwm_jax.trace import render_frames, trace_context
from cwm_jax.trace.episodes import context_of_call

CODE = "LIMIT = [3]\n\ndef f(xs, n=2):\n    ys = [x * n for x in xs]\n    return ys[: LIMIT[0]]"
ROWS = [
    {"id": "a", "code": CODE, "input": "[1, 2, 3, 4]", "output": "[2, 4, 6]"},
    {
        "id": "b",
        "code": "def f(s):\n    d = {}\n    for c in s:\n        d[c] = d.get(c, 0) + 1\n"
        "    return d",
        "input": "'aab'",
        "output": "{'a': 2, 'b': 1}",
    },
    {
        "id": "c",
        "code": "def f(s, t):\n    return t(s)",
        "input": "'x', str.upper",
        "output": "'X'",
    },
    {
        "id": "d",
        "code": "def g(n):\n    return n + 1\n\ndef f(n):\n    return g(n)",
        "input": "4",
        "output": "5",
    },
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("cruxeval") / "cruxeval.jsonl", *ROWS)


def loaded(path, name, mode, **values):
    return ENTRIES[name].load(path, options(mode, **values))


@pytest.fixture(scope="module")
def outputs(path):
    with (evaluation := loaded(path, "cruxeval_o", "direct")).opened():
        yield evaluation


@pytest.fixture(scope="module")
def reasoned(path):
    with (evaluation := loaded(path, "cruxeval_o", "reasoning")).opened():
        yield evaluation


@pytest.fixture(scope="module")
def inputs(path):
    with (evaluation := loaded(path, "cruxeval_i", "reasoning")).opened():
        yield evaluation


def test_every_mode_loads_and_asks(path):
    for name, entry in ENTRIES.items():
        for mode in entry.modes:
            evaluation = loaded(path, name, mode)
            assert evaluation.name == f"{name}/{mode}"
            assert [problem.name for problem in evaluation.problems] == [*"abcd"]
            prompt = prompt_of(evaluation)
            assert prompt.max_tokens > 500 and prompt.think == (mode == "reasoning")
            shown = prompt.text or prompt.messages[-1].content
            assert CODE.partition("\n")[0] in shown and evaluation.about
            assert "[2, 4, 6]" not in shown or name == "cruxeval_i"
            assert all(0 < score < 100 for score in evaluation.published.values())


def test_prompts_are_those_of_the_trained_formats(path):
    direct = prompt_of(loaded(path, "cruxeval_o", "direct"), 1)
    assert direct.text.startswith("<|begin_of_text|>\ndef f(s):") and direct.stop == ("\n",)
    assert direct.text.endswith("def main():\n    return f('aab')\n\nassert main() == ")
    full = prompt_of(loaded(path, "cruxeval_o", "full_trace"), 1)
    assert full.text.startswith("<|begin_of_text|><|trace_context_start|>\ndef f(s):")
    call = "<|call_sep|>{}<|action_sep|>def main():\n<|frame_sep|>"
    assert full.text.endswith(f"return f('aab')\n<|frame_sep|>{call}") and full.stop == ()
    single = prompt_of(loaded(path, "cruxeval_o", "single_step"), 1)
    assert single.text == f"{full.text}<|return_sep|>" and single.stop == ("<|frame_sep|>",)
    shots = prompt_of(loaded(path, "cruxeval_o", "direct", form="few_shot"), 1)
    assert shots.text.endswith("assert f('aab') == ??\n[/PYTHON]\n[ANSWER]\n")
    assert shots.stop == ("[/ANSWER]",) and shots.text.count("[PYTHON]") == 3
    of_input = prompt_of(loaded(path, "cruxeval_i", "direct"), 1)
    assert of_input.text.endswith("assert f(??) == {'a': 2, 'b': 1}\n[/PYTHON]\n[ANSWER]\n")


def test_the_examples_in_prompts_are_true(tmp_path):
    from cwm_jax.evals.sets import cruxeval

    shots = cruxeval._OUTPUT_SHOTS + cruxeval._INPUT_SHOTS
    keys = ("code", "input", "output")
    rows = [{"id": n, **dict(zip(keys, shot, strict=True))} for n, shot in enumerate(shots)]
    evaluation = loaded(lines(tmp_path / "shots.jsonl", *rows), "cruxeval_o", "direct")
    with evaluation.opened():
        assert all(answered(evaluation, n, row["output"]).passed for n, row in enumerate(rows))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("[2, 4, 6]", True),
        ("[2.0, 4, True + 5]", True),
        ("assert f([1, 2, 3, 4]) == [2, 4, 6]", True),
        ("[x * 2 for x in (1, 2, 3)]", True),
        ("(2, 4, 6)", False),
        ("[2, 4]", False),
        ("'[2, 4, 6]'", False),
        ("[2, 4, 6", False),
        ("f([1, 2, 3, 4])", False),
        ("f([1,2,3,4], n=2)", False),
        ("type('Sly', (), {'__eq__': lambda a, b: True})()", False),
        ("type('Sly', (list,), {'__eq__': lambda a, b: True})()", False),
        ("__import__('os')._exit(0)", False),
        ("exit()", False),
        ("[2, 4, 6]; import os", False),
        ("(lambda: (yield))()", False),
        ("[" * 5000, False),
        ("'x' * 10**7", False),
    ],
)
def test_outputs_are_judged_as_python_calls_them_equal(outputs, said, right):
    verdict = answered(outputs, 0, said)
    assert verdict.passed is right, verdict
    assert bool(verdict.reason) is not right


def test_equal_outputs_are_one_answer(outputs):
    found = [
        answered(outputs, 1, said).answer for said in ("{'b': 1.0, 'a': 2}", "dict(a=2, b=True)")
    ]
    assert found[0] == found[1] == answered(outputs, 1, ROWS[1]["output"]).answer
    assert answered(outputs, 1, "{'b': 2}").answer not in (None, found[0])
    assert answered(outputs, 1, "{").answer is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1, True, True),
        (1, 1.0, True),
        ({1, 2}, frozenset({2, 1}), True),
        ({"a": (1, 2)}, {"a": (1.0, 2)}, True),
        ((1,), [1], False),
        (0.5, 0.25, False),
        ("1", 1, False),
        (10**20, 10**20 + 1, False),
    ],
)
def test_one_spelling_of_equal_values(a, b, same):
    assert (canonical(encode(a)) == canonical(encode(b))) is same


def test_a_forged_spelling_is_kept():
    for wire in ({"float": "x"}, {"dict": [3]}, {"float": []}, {}, {"a": 1, "b": 2}):
        assert canonical(wire)


@pytest.mark.parametrize(
    ("text", "cut", "reason"),
    [
        ("[ANSWER][2, 4, 6][/ANSWER]", False, ""),
        ("It doubles.\n[ANSWER]\n[2, 4, 6]\n[/ANSWER]\nDone.", False, ""),
        ("[2, 4, 6]", False, ""),
        ("[2, 4, 6]", True, "not finished"),
        ("[ANSWER]1[/ANSWER] [ANSWER][2, 4, 6][/ANSWER]", False, "2 [ANSWER]"),
        ("[ANSWER][2, 4, 6]", False, "1 [ANSWER] and 0 [/ANSWER]"),
        ("</think>[2, 4, 6]", False, "</think> in the answer"),
        ("", False, "nothing"),
        ("1" * 30_000, False, "30000 characters"),
    ],
)
def test_an_answer_that_reasons_stands_between_its_tags(reasoned, text, cut, reason):
    verdict = answered(reasoned, 0, text, cut=cut)
    assert verdict.passed is (not reason) and verdict.reason.startswith(reason)


def test_a_completion_that_is_cut_is_no_answer(path):
    evaluation = loaded(path, "cruxeval_o", "direct")
    assert answered(evaluation, 0, "[2, 4, 6]", cut=True).reason == "not finished"
    assert answered(evaluation, 0, " ").reason == "nothing"


@pytest.mark.parametrize(
    ("number", "said", "right"),
    [
        (0, "f([1, 2, 3])", True),
        (0, "[1, 2, 3]", True),
        (0, "[2, 4, 6], 1", True),
        (0, "f(n=2, xs=range(1, 9))", True),
        (0, "xs=[2, 4, 6], n=1", True),
        (0, "assert f([1, 2, 3]) == [2, 4, 6]", True),
        (0, "[LIMIT[0] - 2, 2, 3]", True),
        (0, "[int(x) for x in '1,2,3'.split(',')]", True),
        (0, "sorted([3, 2, 1], key=lambda x: x)", True),
        (0, "[1, 2]", False),
        (0, "f", False),
        (0, "f([1, 2, 3]", False),
        (0, "", False),
        (2, "'x', lambda s: s.upper()", True),
        (2, "'X', str", True),
        (2, "'x', str.lower", False),
        # Each of these counts where the call is put into an assertion as it is.
        (0, "f(0) if 0 else [2, 4, 6]", False),
        (0, "[2, 4, 6] or f()", False),
        (0, "globals().__setitem__('f', lambda *a: [2, 4, 6])", False),
        (0, "(f := lambda *a: [2, 4, 6])", False),
        (0, "f.__setattr__('__code__', (lambda xs, n: [2, 4, 6]).__code__)", False),
        (0, "[g.gi_frame for g in [(x for x in [1])]]", False),
        (0, "__import__('sys')", False),
        (3, "(g := lambda n: 5)", False),
        (3, "(lambda: 0).__globals__.update(g=lambda n: 5) or 1", False),
        (3, "[x.gi_frame.f_globals.update(g=lambda n: 5) for x in [(0 for _ in [])]]", False),
        (3, "g(3)", False),
        (0, "cruxeval_input('1')", False),
        (0, "f([1, 2, 3])", True),
        (2, "'X', type('T', (), {'__call__': lambda s, x: x})()", False),
        (2, "'__import__(\"os\")', eval", False),
    ],
)
def test_inputs_are_judged_by_running_the_function(inputs, number, said, right):
    verdict = answered(inputs, number, said)
    assert verdict.passed is right, verdict


def whole_trace(row):
    frames = trace_context(context_of_call(row["code"], row["input"]))
    texts = render_frames(frames).split("<|frame_sep|>")
    return "<|frame_sep|>".join(texts[1:]).removesuffix("<|end_of_text|>")


def test_a_true_trace_is_right_in_every_frame(path):
    with (evaluation := loaded(path, "cruxeval_o", "full_trace")).opened():
        true = whole_trace(ROWS[1])
        verdict = answered(evaluation, 1, true)
        assert verdict.passed and {*verdict.scores.values()} == {1.0}, verdict
        assert verdict.info["first_divergence"] is None

        cut = answered(evaluation, 1, true, cut=True)
        assert not cut.passed and cut.reason == "not finished"
        assert cut.scores["valid_trace_format"] == 0 and cut.scores["state_exact_match"] == 1

        # One wrong value on the way, and the right one at the end.
        slip = true.replace('"c": "\'a\'"', '"c": "\'z\'"', 1)
        verdict = answered(evaluation, 1, slip)
        scores = verdict.scores
        assert verdict.passed and scores["valid_trace_format"] == 1
        assert 0 < scores["state_exact_match"] < 1 == scores["action_exact_match"]
        assert scores["key_value_match"] < scores["key_match"] == 1 and scores["exact_trace"] == 0

        wrong = true.rpartition("'b': 1")
        verdict = answered(evaluation, 1, f"{wrong[0]}'b': 3{wrong[2]}")
        assert not verdict.passed and verdict.scores["valid_trace_format"] == 1

        verdict = answered(evaluation, 1, "nothing of the kind")
        assert not verdict.passed and verdict.reason == "no return of main at the end"
        assert {*verdict.scores.values()} == {0.0}


def test_a_forced_return_says_the_value(path):
    with (evaluation := loaded(path, "cruxeval_o", "single_step")).opened():
        frame = "<|action_sep|>    return f('aab')\n<|arg_sep|>"
        assert answered(evaluation, 1, frame + "\"{'a': 2, 'b': 1}\"").passed
        assert not answered(evaluation, 1, frame + "\"{'a': 2}\"").passed
        for text, cut in ((frame, False), (frame + '"1"', True), ("1", False)):
            assert answered(evaluation, 1, text, cut=cut).reason == "no frame of a return"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"code": None}, ":1: code is null; expected text"),
        ({"code": "def f(:"}, ":1: code is no Python"),
        ({"code": "def g():\n    pass"}, ":1: code defines ['g']; expected the function f"),
        ({"input": "1, *"}, ":1: input is no Python"),
        ({"output": "[1"}, ":1: output is no Python"),
        ({"output": "'<|frame_sep|>'"}, ":1: the output spells the special token"),
        ({"id": ["a"]}, ":1: id is ["),
        ({"code": "def main():\n    pass\ndef f(x):\n    return main()"}, ":1: no trace: the code"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused(tmp_path, row, said):
    path = lines(tmp_path / "x.jsonl", ROWS[0] | row)
    with pytest.raises(ValueError) as found:
        read_rows(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


@pytest.mark.parametrize(("content", "said"), HOSTILE_FILES)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    path = written(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError) as found:
        read_rows(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


def test_one_id_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r":2: the name 'a' is that of line 1, too"):
        read_rows(lines(tmp_path / "x.jsonl", ROWS[0], ROWS[0]))


def test_a_form_is_of_the_direct_mode(path):
    with pytest.raises(ValueError, match="form=other: expected one of main and few_shot"):
        loaded(path, "cruxeval_o", "direct", form="other")
    with pytest.raises(ValueError, match="form is of the mode direct"):
        loaded(path, "cruxeval_o", "full_trace", form="main")
