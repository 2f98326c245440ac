"""Oracle and fault: HumanEval's, EvalPlus' and MBPP's forms, on problems made here."""

import gzip
import json

import pytest
from evals.set_files import HOSTILE_FILES, answered, fenced, lines, options, prompt_of, written

from cwm_jax.evals.sets.code.rows import read_humaneval, read_humaneval_plus, read_mbpp
from cwm_jax.evals.sets.code_problems import ENTRIES
from cwm_jax.rl.environment import EnvironmentFailure

HEAD = "from typing import List\n\n\ndef half(x: float) -> float:\n    return x / 2\n\n\n"
DEF = 'def halves(xs: List[float]) -> List[float]:\n    """Halves each; see half."""\n'
BODY = "    return [half(x) for x in xs]\n"
HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": HEAD + DEF,
    "entry_point": "halves",
    "canonical_solution": BODY,
    "test": "def check(candidate):\n    assert candidate([2, 4.0]) == [1, half(4)]\n"
    "    assert candidate([]) == []\n",
}
PLUS = {k: v for k, v in HUMANEVAL.items() if k != "test"} | {
    "base_input": [[[2, 4.0]], [[]]],
    "plus_input": [[[0.1, 3e300]], [[7]]],
    "atol": 0,
}
ZERO = {
    "task_id": "Own/32",
    "prompt": "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\n"
    'def find_zero(xs):\n    """A zero of the polynomial."""\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[-1, 0, 1]]],
    "plus_input": [],
    "atol": 1e-4,
}
MBPP = {
    "task_id": 12,
    "text": "Write a function to add two numbers.",
    "code": "def plus(a, b):\r\n    return a + b",
    "test_list": ["assert plus(1, 2) == 3", "assert plus(2, 2) == 4"],
    "test_setup_code": "",
    "challenge_test_list": ["assert plus(1.5, -1) == 0.5"],
}
SHOTS = [MBPP | {"task_id": n, "text": f"Shot {n}."} for n in (2, 3, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    lines(folder / "humaneval.jsonl", HUMANEVAL)
    lines(folder / "humaneval_plus.jsonl", PLUS, ZERO)
    lines(folder / "mbpp.jsonl", *SHOTS, MBPP)
    return folder


def loaded(folder, name, mode, **values):
    return ENTRIES[name].load(folder / f"{name}.jsonl", options(mode, **values))


@pytest.fixture(scope="module")
def chats(folder):
    """The sets as dialogs, opened once."""
    chats = {name: loaded(folder, name, "chat") for name in ENTRIES}
    yield chats
    for evaluation in chats.values():
        evaluation.close()


@pytest.fixture(scope="module")
def challenging(folder):
    with (evaluation := loaded(folder, "mbpp", "chat", challenge="yes")).opened():
        yield evaluation


def test_every_mode_loads_and_asks(folder):
    for name, entry in ENTRIES.items():
        for mode in entry.modes:
            evaluation = loaded(folder, name, mode)
            prompt = prompt_of(evaluation)
            assert evaluation.name == f"{name}/{mode}" and prompt.think == (mode == "reasoning")
            assert (prompt.text is None) == (mode != "completion") and evaluation.about
            shown = prompt.text or prompt.messages[-1].content
            assert ("Halves each" in shown) == (name != "mbpp")
            assert ("assert plus(2, 2) == 4" in shown) == (name == "mbpp")
            assert BODY not in shown


def test_completions_follow_the_official_prompts(folder):
    prompt = prompt_of(loaded(folder, "humaneval", "completion"))
    assert prompt.text == f"<|begin_of_text|>{HEAD}{DEF}" and "\ndef" in prompt.stop
    prompt = prompt_of(loaded(folder, "mbpp", "completion"))
    assert prompt.text.startswith("<|begin_of_text|># Task: Shot 2.\n") and "\r" not in prompt.text
    assert prompt.text.count("[DONE]") == 3 and prompt.stop == ("[DONE]",)
    assert prompt.text.endswith("assert plus(2, 2) == 4\n[BEGIN]\n")


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (fenced(HEAD + DEF + BODY), ""),
        (fenced("def halves(xs):\n    return [half(x) for x in xs]"), ""),
        (
            fenced(
                "from __future__ import division\ndef halves(a):\n    return [x / 2 for x in a]"
            ),
            "",
        ),
        (fenced("def halves(xs):\n    return xs"), "wrong answer"),
        (fenced("def other(xs):\n    return xs"), "wrong answer"),
        (fenced("def halves(xs):\n    import os; os._exit(0)"), "runtime error"),
        (fenced("def halves(xs):\n    raise StopIteration"), "runtime error"),
        (fenced("def halves(xs:\n"), "compile error"),
        ("def halves(xs): return [x / 2 for x in xs]", "no code block"),
        (fenced(DEF + BODY) * 2, "2 code blocks"),
        (
            fenced(
                "class E(list):\n    __eq__ = lambda a, b: True\ndef halves(xs):\n    return E()"
            ),
            "runtime error",
        ),
    ],
)
def test_a_dialog_s_block_is_judged(chats, name, text, said):
    verdict = answered(chats[name], 0, text)
    assert verdict.passed is (not said) and verdict.reason.startswith(said), verdict


def test_a_cut_dialog_is_no_answer_and_a_cut_completion_is(folder):
    with (evaluation := loaded(folder, "humaneval", "reasoning")).opened():
        verdict = answered(evaluation, 0, fenced(DEF + BODY), cut=True)
        assert not verdict.passed and verdict.reason == "not finished"
    with (evaluation := loaded(folder, "humaneval", "completion")).opened():
        assert answered(evaluation, 0, BODY, cut=True).passed
        assert answered(evaluation, 0, BODY + "\nX = (", cut=True).reason.startswith("compile")
        assert not answered(evaluation, 0, "    return xs").passed


def test_further_inputs_are_asked_and_floats_have_a_tolerance(folder):
    with (evaluation := loaded(folder, "humaneval_plus", "completion")).opened():
        assert answered(evaluation, 0, "    return [x * 0.5 + 1e-9 for x in xs]\n").passed
        for wrong in (
            "[x * 0.5 + 1e-5 for x in xs]",
            "tuple(x / 2 for x in xs)",
            "xs and [1, 2.0]",
        ):
            assert not answered(evaluation, 0, f"    return {wrong}\n").passed
        # The reference divides by zero here; any zero of the polynomial is right.
        assert answered(evaluation, 1, "    return -1.00001").passed
        assert answered(evaluation, 1, "    return 1").passed
        assert not answered(evaluation, 1, "    return 1.1").passed


def test_a_reference_that_fails_is_no_verdict(tmp_path):
    row = PLUS | {"plus_input": [[["a"]]]}
    evaluation = ENTRIES["humaneval_plus"].load(
        lines(tmp_path / "x.jsonl", row), options("completion")
    )
    with evaluation.opened(), pytest.raises(EnvironmentFailure, match="the reference halves fails"):
        answered(evaluation, 0, BODY)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def plus(a, b):\n    return a + b", ""),
        ("plus = lambda a, b: a + b", ""),
        ("def plus(a, b):\n    return 3", "wrong answer"),
        ("def plus(a, b):\n    return int(a + b)", "wrong answer"),
        ("def minus(a, b):\n    return a + b", "runtime error"),
    ],
)
def test_mbpp_is_judged_by_its_assertions(challenging, code, said):
    assert [problem.name for problem in challenging.problems] == ["12"]
    verdict = answered(challenging, 0, fenced(code))
    assert verdict.passed is (not said) and verdict.reason.startswith(said), verdict


def test_the_further_assertions_are_left_out_unless_wanted(chats):
    assert answered(chats["mbpp"], 0, fenced("def plus(a, b):\n    return int(a + b)")).passed


def test_tests_may_make_what_the_code_defines(tmp_path):
    row = MBPP | {
        "code": "class Node:\n    def __init__(self, n):\n        self.n = n\n"
        "def plus(node):\n    return node.n + node.next.n",
        "test_list": ["assert plus(top) == 3"],
        "test_setup_code": "top = Node(1)\r\ntop.next = Node(2)",
        "challenge_test_list": [],
    }
    evaluation = ENTRIES["mbpp"].load(lines(tmp_path / "x.jsonl", row), options("chat"))
    with evaluation.opened():
        assert answered(evaluation, 0, fenced(row["code"])).passed
        assert not answered(evaluation, 0, fenced(row["code"].replace("+", "-"))).passed


def test_the_sanitized_form_and_packed_files_are_read(tmp_path):
    row = {
        "source_file": "x",
        "task_id": 600,
        "prompt": "Add.",
        "code": MBPP["code"],
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(plus(1, 2), 3)"],
    }
    (tmp_path / "x.json").write_text(json.dumps([row, row | {"task_id": 601}], indent=1))
    found = read_mbpp(tmp_path / "x.json")
    assert [r.labels["split"] for r in found] == ["validation", "train"]
    assert found[0].entry == "plus" and "import math" in found[0].tests.setup
    (tmp_path / "x.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    assert [r.name for r in read_humaneval(tmp_path / "x.gz")] == ["Own/0"]
    (tmp_path / "y.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode())[:-20])
    with pytest.raises(ValueError, match=r"y.gz cannot be read \(.*; expected a file, lines with"):
        read_humaneval(tmp_path / "y.gz")


def test_a_split_without_problems_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no problem of the split 'train'; it has \{'prompt': 3"):
        loaded(folder, "mbpp", "chat", split="train")
    with pytest.raises(ValueError, match="split=tests: expected one of prompt, test,"):
        loaded(folder, "mbpp", "chat", split="tests")
    assert len(loaded(folder, "mbpp", "chat", split="all").problems) == 4
    path = lines(tmp_path / "x.jsonl", MBPP, SHOTS[0])
    with pytest.raises(ValueError, match=r"x.jsonl has no problem 3 and 4; expected those that a"):
        ENTRIES["mbpp"].load(path, options("completion"))


@pytest.mark.parametrize(
    ("read", "row", "said"),
    [
        (read_humaneval, HUMANEVAL | {"test": 3}, ":1: test is 3; expected text"),
        (read_humaneval, HUMANEVAL | {"test": "def check(:"}, ":1: test is no Python"),
        (read_humaneval, HUMANEVAL | {"prompt": "def f():"}, ":1: prompt is no Python"),
        (
            read_humaneval,
            HUMANEVAL | {"entry_point": "thirds"},
            ":1: prompt defines half and halves; expected thirds",
        ),
        (read_humaneval, HUMANEVAL | {"entry_point": "a b"}, ":1: entry_point is"),
        (read_humaneval, PLUS, ":1: the line has no 'test'; expected task_id,"),
        (read_humaneval_plus, HUMANEVAL, ":1: the line has no 'base_input'; expected"),
        (read_humaneval_plus, PLUS | {"base_input": []}, ":1: base_input is an empty list"),
        (read_humaneval_plus, PLUS | {"plus_input": [3]}, ":1: plus_input[0]: arguments is 3"),
        (read_humaneval_plus, PLUS | {"atol": "x"}, ':1: atol is "x"; expected a number'),
        (read_mbpp, MBPP | {"test_list": []}, ":1: test_list is an empty list"),
        (read_mbpp, MBPP | {"test_list": [None]}, ":1: test_list[0]: it is null"),
        (read_mbpp, MBPP | {"test_list": ["assert 1"]}, ":1: test_list calls [] and code defines"),
        (read_mbpp, MBPP | {"code": "def minus(): 0"}, ":1: test_list calls ['plus'] and code"),
        (read_mbpp, MBPP | {"code": "def"}, ":1: code is no Python"),
        (read_mbpp, MBPP | {"text": "<|eot_id|>"}, ":1: the problem spells the special token"),
        (read_mbpp, {"task_id": 1, "code": "", "test_list": []}, ":1: the line has no 'prompt'"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused(tmp_path, read, row, said):
    path = lines(tmp_path / "x.jsonl", row)
    with pytest.raises(ValueError) as found:
        read(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


@pytest.mark.parametrize("read", [read_humaneval, read_humaneval_plus, read_mbpp])
@pytest.mark.parametrize(("content", "said"), HOSTILE_FILES)
def test_a_file_that_is_none_is_refused(tmp_path, read, content, said):
    path = written(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError) as found:
        read(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


def test_one_id_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r":2: the name '12' is that of line 1, too"):
        read_mbpp(lines(tmp_path / "x.jsonl", MBPP, MBPP | {"task_id": "12"}))
