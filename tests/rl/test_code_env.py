"""Law and fault: what code is worth by its tests, in three styles."""

import dataclasses
import json

import pytest
from rl.turns import fenced, small_tokenizer, task, turn

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.answers import NoAnswerError, only_code_block
from cwm_jax.rl.envs.code.comparison import is_same_output, is_same_value
from cwm_jax.rl.envs.code.environment import PROFILES, Code
from cwm_jax.rl.envs.code.grading import Grader, Verdict
from cwm_jax.rl.envs.code.inside import decode, encode
from cwm_jax.rl.envs.code.tests import AssertTests, parse_tests
from cwm_jax.rl.envs.kinds import make_environments
from cwm_jax.sandbox import Outcome

LIMITS = dataclasses.replace(PROFILES["small"].grading, test_s=1.0, output_bytes=100_000, calls=60)
STDIN = {"style": "stdin", "cases": [{"input": "1 2\n", "output": "3\n"}]}
STDIN["cases"] += [{"input": "4 5", "output": "9.0"}]
FUNCTION = {"style": "function", "name": "add", "cases": [{"args": [1, 2], "expected": 3}]}
FUNCTION["cases"] += [{"args": [4, 5], "expected": 9}]
ASSERTS = {
    "style": "asserts",
    "entry": "add",
    "code": "assert add(1, 2) == 3\nassert add(4, 5) == 9",
}
CHECK = {
    "style": "asserts",
    "entry": "add",
    "setup": "import random",
    "code": "def check(f):\n    for _ in range(20):\n        a = random.random()\n"
    "        assert f(a, b=1) == a + 1",
}
RIGHT = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def grader():
    grader = Grader(LIMITS)
    yield grader
    grader.close()


def grade(grader, code, tests):
    return grader.grade(code, parse_tests(tests))


@pytest.mark.parametrize("tests", [FUNCTION, ASSERTS, CHECK], ids=["function", "asserts", "check"])
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (RIGHT, "passed"),
        ("class Solution:\n    def add(self, a: List, b):\n        return a + b", "passed"),
        ("def add(a, b):\n    return a - b", "wrong answer"),
        ("def add(a, b):\n    return None", "wrong answer"),
        ("def add(a, b):\n    return a / 0", "runtime error"),
        ("def add(a, b):\n    raise AssertionError", "runtime error"),
        ("def other(a, b):\n    return a + b", "runtime error"),
        ("def add(a, b):\n    return (x for x in [a + b])", "runtime error"),
        ("def add(a, b:\n", "compile error"),
        ("def add(a, b):\n    exit(0)", "runtime error"),
        ("def add(a, b):\n    return 'x' * 200_000", "output limit"),
    ],
)
def test_functions_are_judged(grader, tests, code, verdict):
    found = grade(grader, code, tests)
    assert found.verdict.value == verdict, found


@pytest.mark.parametrize(
    ("code", "verdict", "num_passed"),
    [
        ("print(sum(map(int, input().split())))", "passed", 2),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())), end='')", "passed", 2),
        ("print(sum(map(int, open(0).read().split())), '\\n\\n')\nexit()", "passed", 2),
        (
            "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
            "passed",
            2,
        ),
        (
            "import threading\nif __name__ == '__main__':\n    threading.Thread(target=lambda: "
            "print(sum(map(int, input().split())))).start()",
            "passed",
            2,
        ),
        (
            "import atexit\nout = []\natexit.register(lambda: print(*out))\n"
            "out.append(sum(map(int, input().split())))",
            "passed",
            2,
        ),
        ("print(3)", "wrong answer", 1),
        ("", "wrong answer", 0),
        ("print(sum(map(int, input().split())))\nexit(1)", "runtime error", 0),
        ("input()\ninput()", "runtime error", 0),
        ("print(", "compile error", 0),
        ("while True:\n    print('x' * 10_000)", "output limit", 0),
        ("[0] * 10**9", "runtime error", 0),
    ],
)
def test_programs_are_judged(grader, code, verdict, num_passed):
    found = grade(grader, code, STDIN)
    assert (found.verdict.value, found.num_passed) == (verdict, num_passed), found


def test_a_name_that_every_answer_has_is_not_its_function(grader):
    tests = {"style": "function", "name": "gcd", "cases": [{"args": [4, 6], "expected": 2}]}
    assert grade(grader, "x = gcd(4, 6)", tests).verdict is Verdict.RUNTIME_ERROR
    assert (
        grade(grader, "def gcd(a, b):\n    return math.gcd(a, b)", tests).verdict.value == "passed"
    )


def test_a_loop_and_a_sleep_are_timeouts():
    short = Grader(dataclasses.replace(LIMITS, test_s=0.2))
    try:
        assert grade(short, "while True:\n    pass", STDIN).verdict is Verdict.TIMEOUT
        sleeps = "import time\ndef add(a, b):\n    time.sleep(9)"
        assert grade(short, sleeps, FUNCTION).verdict is Verdict.TIMEOUT
        assert (
            grade(short, "def add(a, b):\n    while True: pass", ASSERTS).verdict is Verdict.TIMEOUT
        )
    finally:
        short.close()


def test_the_tests_of_a_problem_have_a_limit_together():
    hurried = Grader(dataclasses.replace(LIMITS, total_s=0.05))
    slow = "import time\ndef add(a, b):\n    time.sleep(0.1)\n    return a + b"
    try:
        assert grade(hurried, slow, FUNCTION).verdict is Verdict.TIMEOUT
        assert grade(hurried, slow, ASSERTS).verdict is Verdict.TIMEOUT
        one = {**FUNCTION, "cases": FUNCTION["cases"][:1]}
        assert grade(hurried, slow, one).verdict is Verdict.PASSED  # nothing is left to run
    finally:
        hurried.close()


def test_assertions_have_a_limit_together_where_other_tests_have_one_each():
    limits = dataclasses.replace(LIMITS, total_s=None, assertions_s=0.05)
    hurried = Grader(limits)
    slow = "import time\ndef add(a, b):\n    time.sleep(0.1)\n    return a + b"
    try:
        assert grade(hurried, slow, ASSERTS).verdict is Verdict.TIMEOUT
        assert grade(hurried, slow, FUNCTION).verdict is Verdict.PASSED
    finally:
        hurried.close()
    for profile in PROFILES.values():
        assert profile.grading.assertions_s < profile.grading.calls * profile.grading.test_s


def test_too_many_calls_by_assertions_are_a_failure(grader):
    tests = {**ASSERTS, "code": "n = 0\nwhile add(n, 1):\n    n += 1"}
    found = grade(grader, RIGHT, tests)
    assert found.verdict is Verdict.TIMEOUT and "60 calls" in found.detail


def test_assertions_see_an_exception_that_they_expect(grader):
    code = (
        "try:\n    add('a', 1)\nexcept TypeError as error:\n    assert 'str' in str(error)\nelse:\n"
    )
    tests = {**ASSERTS, "code": code + "    assert False\nassert add(1, 1) == 2"}
    assert grade(grader, RIGHT, tests).verdict is Verdict.PASSED
    assert grade(grader, "def add(a, b):\n    return 2", tests).verdict is Verdict.WRONG_ANSWER


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ({"code": "assert add"}, "do not call"),
        ({"code": "assert add(1"}, "do not call.*SyntaxError"),
        ({"code": "assert add(print, 2) == 3"}, "cannot be sent"),
        ({"code": "import time\nassert add(time.time(), 2)"}, "differently each time"),
        ({"code": "while True: add"}, "do not run"),
        ({"code": "1 / 0\nadd(1, 2)"}, "do not call"),
    ],
)
def test_unusable_assertions_are_a_failure_of_the_environment(grader, tests, why):
    with pytest.raises(EnvironmentFailure, match=f"(?s){why}"):
        grade(grader, RIGHT, {**ASSERTS, **tests})


PAIR = "class Pair:\n    def __init__(self, a, b=5):\n        self.a, self.b = a, b\n\n"
SUM = (
    "def more(p):\n    return p.more.a if hasattr(p, 'more') else 0\n\n"
    "def total(pairs):\n    return sum(p.a * p.b + more(p) for p in pairs)"
)
MADE = {
    "style": "asserts",
    "entry": "total",
    "setup": "p = Pair(1, b=2)\np.more = Pair(7)\np.more.a = 100",
    "code": "assert total([Pair(3), p]) == 117\nassert total([Pair(1, 1)]) == 1",
}


def test_assertions_make_objects_of_classes_that_the_answer_defines(grader):
    assert grade(grader, PAIR + SUM, MADE).verdict is Verdict.PASSED
    wrong = grade(grader, PAIR + SUM.replace("p.b", "1"), MADE)
    assert wrong.verdict is Verdict.WRONG_ANSWER
    lacking = grade(grader, SUM, MADE)
    assert lacking.verdict is Verdict.RUNTIME_ERROR and "no 'Pair'" in lacking.detail


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("assert total([Pair(1)]) == Pair", "use Pair"),
        ("assert total([Pair(1)]) == Pair(1)", "compare a Pair"),
        ("assert total([Pair(1)]) == Pair(1).a", r"read \.a of a Pair"),
        ("assert total([Pair(1)]) == Pair.zero", "use Pair"),
        ("assert isinstance(total([Pair(1)]), Pair)", "use Pair"),
        ("a = Pair(1)\na.more = a\nassert total([a])", "cannot be sent"),
    ],
)
def test_assertions_that_do_more_with_them_are_a_failure_of_the_environment(grader, code, why):
    with pytest.raises(EnvironmentFailure, match=why):
        grade(grader, PAIR + SUM, {**MADE, "setup": "", "code": code})


def test_an_answer_makes_nothing_in_the_assertions():
    with pytest.raises(ValueError, match="no plain data: made"):
        decode({"made": ["Pair", [1], [], []]})


def test_calls_that_are_known_are_answered_first(grader):
    calls = tuple({"args": encode((a, 1)), "kwargs": encode({})} for a in range(20))
    code = "for a in range(20):\n    assert add(a, 1) == a + 1"
    tests = AssertTests("add", code, calls=calls)
    assert grader.grade(RIGHT, tests) == grader.grade(RIGHT, AssertTests("add", code))
    assert grader.grade(RIGHT.replace("+ b", "+ 2"), tests).verdict is Verdict.WRONG_ANSWER
    with pytest.raises(EnvironmentFailure, match="differently each time"):
        grader.grade(RIGHT, AssertTests("add", code, calls=calls[1:]))


def test_reference_code_says_what_it_returns(grader):
    calls = [{"args": encode((a, b)), "kwargs": encode({})} for a, b in ((1, 2), ([3], [4]))]
    assert grader.returned(RIGHT, "add", calls) == [3, [3, 4]]
    with pytest.raises(EnvironmentFailure, match="the reference add fails"):
        grader.returned("def add(a, b):\n    return 1 / 0", "add", calls)


@pytest.mark.parametrize(
    "value",
    [
        *[None, True, 1, -(10**30), 1.5, float("inf"), "ä\udc80", b"a", [1, [2]], (1,), {1, 2}],
        *[frozenset({1}), {1: "a", (1, 2): [None]}, range(3), 2j, {}, [], bytearray(b"x")],
    ],
)
def test_values_cross_as_they_are(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "wire",
    [
        {"int": "x"},
        {"int": 5},
        {"eval": "1"},
        {},
        {"list": []},
        {"set": [[1]]},
        {"dict": [[1]]},
        {"complex": []},
        {"complex": {}},
        1.5,
    ],
)
def test_what_is_no_plain_data_is_refused(wire):
    with pytest.raises(ValueError, match="it is no"):
        decode(wire)


class Sly(int):
    def __eq__(self, other):
        return True

    __hash__ = None


def test_values_of_other_types_do_not_cross():
    for value in (Sly(1), [Sly(1)], object(), iter([]), type("S", (str,), {})("a")):
        with pytest.raises(TypeError, match="no plain data"):
            encode(value)


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        (1, 1, True),
        (1.0, 1, True),
        (True, 1, True),
        ((1, [2]), [1, [2]], True),
        ({"a": (1,)}, {"a": [1]}, True),
        ({1: 2}, {"1": 2}, False),
        ({"a": 1, "b": 1}, {"a": 1}, False),
        ("1", 1, False),
        ([1], 1, False),
        (1, [1], False),
        ({1, 2}, [1, 2], False),
        (b"a", "a", False),
        (None, 0, False),
        (10**30, 10**30, True),
        (0.1 + 0.2, 0.3, False),
        (float("nan"), float("nan"), True),
        ([], {}, False),
        ([[1, 2], [3]], [[1, 2], [4]], False),
    ],
)
def test_returned_values_are_compared(returned, expected, same):
    assert is_same_value(encode(returned), expected) is same


@pytest.mark.parametrize(
    "wire", [{"passed": True}, {"int": 3}, {"dict": [3]}, {"x": []}, 3.0, [[]], {}]
)
def test_forged_spellings_are_not_equal(wire):
    assert not is_same_value(wire, 3) and not is_same_value(wire, {"a": 3})


def test_a_deep_value_is_compared_without_recursion():
    deep, expected = 1, 1
    for _ in range(100_000):
        deep, expected = [deep], [expected]
    assert is_same_value(deep, expected)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3\n", "3", True),
        (" 3 \n\n", "3", True),
        ("3.0", "3", True),
        ("1 2.50\n3", "1 2.5\n3.000", True),
        ("1e2", "100", True),
        ("0.30000000000000004", "0.3", False),
        ("100001", "100002", False),
        ("1 2", "1\n2", False),
        ("1 2", "1 2 3", False),
        ("yes", "YES", False),
        ("nan", "nan", True),
        ("nan", "inf", False),
        ("Infinity", "inf", False),
        ("1_0", "10", False),
        ("1e999999999", "1e999999998", False),
        ("", "0", False),
    ],
)
def test_output_is_compared(printed, expected, same):
    assert is_same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\n```\noutput\n```\n```text\nmore\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", "a\n"),
        ("  ```python \n  a\n\nb\n  ```", "  a\n\nb\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("none", "no code block"),
        ("`a` ```a```", "no code block"),
        ("```python\na\n```\n```python\na\n```", "2 code blocks"),
        ("```python\na\n```\n```py\nb\n```", "2 code blocks"),
        ("```\na\n```\n```\nb\n```", "2 code blocks"),
        ("```python\na", "a code block is not closed"),
        ("```python\na\n```\n```\nb", "a code block is not closed"),
    ],
)
def test_one_block_of_code_is_the_answer(text, code):
    if code.endswith("\n"):
        assert only_code_block(text) == code
    else:
        with pytest.raises(NoAnswerError, match=f"^{code}$"):
            only_code_block(text)


def test_an_episode_is_one_answer(tokenizer, grader):
    environment = Code(task(tests=FUNCTION), tokenizer, PROFILES["small"], grader)
    start = environment.start()
    assert start.tokens[0] == tokenizer.bos_id and start.max_action_tokens == 512
    prompt = tokenizer.decode(start.tokens)
    assert prompt.endswith("<think>\n") and "`add`" in prompt and "expected" not in prompt
    step = environment.step(turn(tokenizer, fenced(RIGHT)))
    assert step.done and step.reward == 1 and step.info["pass"] and step.info["verdict"] == "passed"
    assert json.loads(json.dumps(step.info)) == step.info
    step = environment.step(turn(tokenizer, fenced("def add(a, b):\n    return 3")))
    assert step.reward == -1 and step.info["num_passed"] == 1
    assert step.info["reason"].startswith("wrong answer: it returned 3")
    environment.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (fenced(RIGHT).replace("</think>", ""), "0 </think>"),
        (fenced(RIGHT) + "</think>", "2 </think>"),
        (fenced(RIGHT) + "<think>", "<think> is not closed"),
        (fenced(RIGHT) + fenced(RIGHT).split("</think>")[1], "2 code blocks"),
        ("</think>\nI give up", "no code block"),
        ("```python\nx\n```\n</think>\nsee above", "no code block"),
    ],
)
def test_a_broken_form_is_a_failure(tokenizer, grader, text, reason):
    environment = Code(task(tests=FUNCTION), tokenizer, PROFILES["small"], grader)
    step = environment.step(turn(tokenizer, text))
    assert (step.reward, step.info["reason"]) == (-1, reason)
    cut = environment.step(turn(tokenizer, fenced(RIGHT), end=False))
    assert (cut.reward, cut.info["reason"]) == (-1, "not finished")


def test_without_reasoning_no_tag_is_demanded(tokenizer, grader):
    environment = Code(task(tests=FUNCTION), tokenizer, PROFILES["direct"], grader)
    assert not tokenizer.decode(environment.start().tokens).endswith("<think>\n")
    assert environment.step(turn(tokenizer, fenced(RIGHT).split("</think>")[1])).reward == 1
    assert environment.step(turn(tokenizer, fenced(RIGHT))).info["reason"] == "1 </think>"


def test_a_long_problem_loses_its_beginning(tokenizer, grader):
    long = task(tests=STDIN, problem="FIRST " + "x y " * 5000, starter="import sys")
    profile = dataclasses.replace(PROFILES["64k"], system_prompt=False, max_prompt_tokens=700)
    start = Code(long, tokenizer, profile, grader).start()
    prompt = tokenizer.decode(start.tokens)
    assert "FIRST" not in prompt and "[...]" in prompt and "exactly one block" in prompt
    assert start.max_action_tokens == 64_510 and len(start.tokens) < 700 + 20


def test_tests_of_no_known_form_are_refused(tokenizer, grader):
    with pytest.raises(ValueError, match=r"task 't': tests are \{\}; expected .*: mend the task"):
        Code(task(tests={}), tokenizer, PROFILES["small"], grader)


def test_without_a_sandbox_the_environment_fails(tokenizer, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    config = EnvironmentConfig(name="code", kind="code")
    environment = make_environments([config], tokenizer)("code", task(tests=FUNCTION))
    with pytest.raises(EnvironmentFailure, match="bwrap"):
        environment.step(turn(tokenizer, fenced(RIGHT)))


def test_a_sandbox_that_is_lost_costs_no_reward(monkeypatch):
    grader = Grader(LIMITS)
    try:
        assert grade(grader, RIGHT, FUNCTION).verdict is Verdict.PASSED
        worker = grader._candidates._pool._free[0]
        worker._supervisor.process._popen.kill()  # as a machine out of memory would
        worker._supervisor.process._popen.wait()
        assert grade(grader, RIGHT, FUNCTION).verdict is Verdict.PASSED
        lost = dataclasses.replace(
            worker.call(b'{"code": ""}'), outcome=Outcome.EXIT, detail="the sandbox was lost: x"
        )
        replies = iter([lost, worker.call(b'{"code": "", "name": "f"}')])
        monkeypatch.setattr(grader._candidates._pool, "call", lambda *_, **__: next(replies))
        assert grade(grader, RIGHT, FUNCTION).verdict is Verdict.RUNTIME_ERROR  # the second one
        monkeypatch.setattr(grader._candidates._pool, "call", lambda *_, **__: lost)
        with pytest.raises(EnvironmentFailure, match="twice, the sandbox was lost"):
            grade(grader, RIGHT, FUNCTION)
    finally:
        monkeypatch.undo()
        grader.close()
