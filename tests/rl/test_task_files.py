"""Fault: task files that cannot be used, refused when they are loaded, with place and next step."""

import gc
import json

import pytest
from rl import test_math_env

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.envs.kinds import load_tasks
from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.gold import complaint_of_gold

MATH = {"problem": "What is 6 times 7?", "answer": "42"}
STDIN = {"style": "stdin", "cases": [{"input": "", "output": "3"}]}
FUNCTION = {"style": "function", "name": "add", "cases": [{"args": [1, 2], "expected": None}]}
ASSERTS = {"style": "asserts", "entry": "add", "code": "assert add(1, 2) == 3"}
LINE = json.dumps({"name": "a", "data": MATH})


@pytest.fixture
def load(tmp_path):
    """``load(kind, content)``: the tasks of a file; of no file without content."""

    def make(kind, content=None):
        path = tmp_path / "tasks.jsonl"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_tasks(EnvironmentConfig(name="mine", kind=kind, path=str(path)))

    return make


def refusal(load, *arguments):
    """What is said, after the owner and the file, which are always named."""
    with pytest.raises(ValueError) as caught:
        load(*arguments)
    kind = arguments[0]
    owner, _, rest = str(caught.value).partition("): ")
    assert owner == f"rl environment 'mine' ({kind}" and "tasks.jsonl" in rest
    assert "; expected " in rest and rest.rpartition(": ")[2]
    return rest.partition("tasks.jsonl")[2]


def of_task(load, kind, data):
    """What is said of the second line's data."""
    lines = f"\n{json.dumps({'name': 'x', 'data': data})}\n"
    said = refusal(load, kind, lines)
    start, end = f":2: {kind.removesuffix('_python')} task 'x': ", ": mend the task"
    assert said.startswith(start) and said.endswith(end)
    return said.removeprefix(start).removesuffix(end)


def test_a_file_is_read_past_blank_lines_and_ends_without_one(load):
    other = json.dumps({"name": "b", "data": {**MATH, "ordered": False}, "group": "g"})
    tasks = load("math", f"\n{LINE}\n \t\n{other}")
    assert [(task.name, task.group) for task in tasks] == [("a", ""), ("b", "g")]
    assert tasks[0].data == MATH and gc.isenabled()
    assert load("math_python", f"{LINE}\r\n") == tasks[:1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, " is not there; expected a file, one JSON object with name, data and perhaps"),
        ("", " has no task; expected one JSON object"),
        ("\n \n", " has no task"),
        (b"\xef\xbb\xbf" + LINE.encode(), ":1: the file begins with a byte order mark (BOM)"),
        (LINE.encode("utf-16"), ":1: byte 1 of the line is no UTF-8"),
        (LINE.encode() + b'\n{"name": "\xe4"}', ":2: byte 11 of the line is no UTF-8"),
        ("{\n", ":1: the line is not JSON (Expecting property name"),
        (f"{LINE}\n{'[' * 100_000}", ":2: the line is not JSON ("),
        (f"{LINE}\n[1]", ":2: the line is [1]; expected an object with name, data and group"),
        ('{"name": "a"}', ":1: the line has no 'data'; expected name and data"),
        ('{"name": "a", "data": {}, "groups": ""}', ":1: the line has the key 'groups'; did you"),
        ('{"name": 3, "data": {}}', ":1: name is 3; expected text"),
        ('{"name": " ", "data": {}}', ":1: name is empty; expected some text"),
        ('{"name": "a", "data": [1]}', ":1: data of task 'a' is [1]; expected an object"),
        ('{"name": "a", "data": {}, "group": null}', ":1: group of task 'a' is null; expected te"),
        (f"{LINE}\n\n{LINE}", ":3: the name 'a' is that of line 1, too; expected each its own"),
    ],
)
def test_a_file_that_is_none_of_tasks_is_refused(load, content, said):
    found = refusal(load, "math", content)
    assert found.startswith(said), found


def test_a_folder_is_no_file_of_tasks(load, tmp_path):
    (tmp_path / "tasks.jsonl").mkdir()
    said = refusal(load, "code")
    assert said.startswith(" is a folder; expected a file, one JSON object")
    assert said.endswith(": mend the environment's path")


def test_a_corpus_that_is_not_there_or_has_no_task_is_refused_with_the_environments_name(tmp_path):
    for kind in ("output_prediction", "trace_prediction"):
        config = EnvironmentConfig(name="mine", kind=kind, path=str(tmp_path / "none"))
        with pytest.raises(ValueError, match=rf"^rl environment 'mine' \({kind}\): .*none"):
            load_tasks(config)


@pytest.mark.parametrize("tests", [STDIN, FUNCTION, ASSERTS])
def test_the_documented_forms_of_code_are_taken(load, tests):
    data = {"problem": "x", "tests": tests, "starter": None}
    assert load("code", json.dumps({"name": "x", "data": data}))[0].data == data
    data |= {"starter": "import sys", "tests": {**tests, "cases": tests.get("cases", []) * 2}}
    if tests is ASSERTS:
        data["tests"] = {**tests, "setup": "import math", "code": "def check(f): assert f(1)"}
    assert load("code", json.dumps({"name": "x", "data": data}))[0].data == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tests": STDIN}, "data has no 'problem'; expected problem and tests"),
        ({"problem": "x"}, "data has no 'tests'; expected problem and tests"),
        ({"problem": ["x"], "tests": STDIN}, 'problem is ["x"]; expected text'),
        ({"problem": "", "tests": STDIN}, "problem is empty; expected some text"),
        ({"problem": "\ud800", "tests": STDIN}, "problem has half of a character, '\\ud800'; exp"),
        ({"problem": "x", "tests": STDIN, "starter": 1}, "starter is 1; expected text"),
        (
            {"problem": "x", "tests": STDIN, "time": 1},
            "data has the key 'time'; expected problem, tests and starter alone",
        ),
    ],
)
def test_data_of_code_that_cannot_be_used_are_refused(load, data, said):
    found = of_task(load, "code", data)
    assert found.startswith(said), found


def case(tests, **changes):
    return {**tests, "cases": [tests["cases"][0], {**tests["cases"][0], **changes}]}


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (None, "tests are null; expected an object whose style is 'stdin' or 'function' or 'asser"),
        ([STDIN], 'tests are [{"style": "stdin"'),
        ({**STDIN, "style": "io"}, 'tests are {"style": "io"'),
        ({**STDIN, "style": ["io"]}, 'tests are {"style": ["io"]'),
        ({"style": "stdin"}, "tests has no 'cases'; expected style and cases"),
        ({**STDIN, "cases": []}, "tests.cases is an empty list; expected at least one"),
        ({**STDIN, "cases": {"input": "1"}}, 'tests.cases is {"input": "1"}; expected a list'),
        ({**STDIN, "cases": ["1"]}, 'tests.cases[0]: it is "1"; expected an object with input and'),
        (case(STDIN, output=3), "tests.cases[1]: output is 3; expected text"),
        (case(STDIN, input=None), "tests.cases[1]: input is null; expected text"),
        (case(STDIN, args=[]), "tests.cases[1]: it has the key 'args'; expected input and output"),
        ({**STDIN, "name": "f"}, "tests has the key 'name'; expected style and cases alone"),
        ({**FUNCTION, "name": "a.b"}, 'tests.name is "a.b"; expected a name, as Python has them'),
        ({"style": "function", "cases": FUNCTION["cases"]}, "tests has no 'name'; expected style"),
        (
            case(FUNCTION, kwargs={"b": 2}),
            "tests.cases[1]: it has the key 'kwargs'; did you mean 'args'?; expected args and expe",
        ),
        (case(FUNCTION, args={"a": 1}), 'tests.cases[1]: args is {"a": 1}; expected a list'),
        (case(FUNCTION, args="12"), 'tests.cases[1]: args is "12"; expected a list'),
        (
            {**FUNCTION, "cases": [{"args": []}]},
            "tests.cases[0]: it has no 'expected'; expected args and expected",
        ),
        ({"style": "asserts", "code": "1"}, "tests has no 'entry'; expected style, entry and code"),
        ({**ASSERTS, "code": ["assert"]}, 'tests.code is ["assert"]; expected text'),
        ({**ASSERTS, "setup": 1}, "tests.setup is 1; expected text"),
        (
            {**ASSERTS, "cases": []},
            "tests has the key 'cases'; expected style, entry, code and set",
        ),
        ({**ASSERTS, "entry": "sub"}, "tests.code does not call 'sub', which is its entry; expect"),
    ],
)
def test_tests_of_code_that_cannot_be_used_are_refused(load, tests, said):
    found = of_task(load, "code", {"problem": "x", "tests": tests})
    assert found.startswith(said), found


@pytest.mark.parametrize("kind", ["math", "math_python"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"answer": "1"}, "data has no 'problem'; expected problem and answer"),
        ({"problem": "x"}, "data has no 'answer'; expected problem and answer"),
        ({**MATH, "answer": 42}, "answer is 42; expected text"),
        ({**MATH, "answer": " "}, "answer is empty; expected some text"),
        ({**MATH, "problem": 1}, "problem is 1; expected text"),
        ({**MATH, "ordered": "no"}, 'ordered is "no"; expected true or false'),
        (
            {**MATH, "solution": "x"},
            "data has the key 'solution'; expected problem, answer and ordered alone",
        ),
        ({**MATH, "answer": r"\boxed{42}"}, r'answer is "\\boxed{42}", with \boxed in it; expecte'),
        (
            {**MATH, "answer": "6*7\n#### 42"},
            'answer is "6*7\\n#### 42", with #### in it; expected',
        ),
        ({**MATH, "answer": "7 apples"}, "answer is \"7 apples\", where 'apples' beside a number"),
    ],
)
def test_data_of_math_that_cannot_be_used_are_refused(load, kind, data, said):
    found = of_task(load, kind, data)
    assert found.startswith(said), found


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("7 apples", ["7", r"7\text{ apples}"]),
        ("about 5", ["5"]),
        ("x = 7 apples", ["7"]),
        ("1 or 2", ["1,2", r"1 \text{ or } 2"]),
        ("(1, 7 apples)", ["(1,7)"]),
        (r"\begin{pmatrix} 1 \\ 7 apples \end{pmatrix}", [r"\begin{pmatrix} 1 \\ 7 \end{pmatrix}"]),
        ("1 2", ["1,2"]),
        ("10 000", ["10,000"]),
        ("2 1/2", [r"2\frac{1}{2}", "2.5"]),
        (r"\frac{1}{2", [r"\frac{1}{2}"]),
        ("1,", ["1"]),
        ("1" * 6000, ["1" * 6000]),
        ("(" * 50 + "1" + ")" * 50, ["(" * 50 + "1" + ")" * 50]),
    ],
)
def test_a_gold_answer_that_no_right_answer_equals_is_refused(gold, answers):
    assert "; expected " in complaint_of_gold(gold)
    for answer in answers:  # what makes it of no use
        assert compare(gold, answer) is not Comparison.SAME


(COMPARED,) = test_math_env.test_answers_are_compared.pytestmark


@pytest.mark.parametrize("gold", sorted({gold for gold, _, _ in COMPARED.args[1]}))
def test_a_gold_answer_that_can_be_compared_is_taken(gold):
    assert not complaint_of_gold(gold)


@pytest.mark.parametrize(
    "gold",
    [
        *["New York", "no solution", r"\text{7 apples}", r"7 \text{ apples}", "7 hours", "12:30"],
        *[r"\pi abc", "2abc", r"3 \sin x", r"\{\}", r"10\,000", r"1 \text{ or } 2", "5!", "50%"],
        *[r"\left\{ 1 \right.", "$7$", r"3,5,\ldots", "1e5", "July", r"\$5", "-3", "2.50", "A, B"],
    ],
)
def test_other_gold_answers_are_taken(gold):
    assert not complaint_of_gold(gold)
