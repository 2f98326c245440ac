"""Hostile input: ways to a reward without a solution, none of which leads there.

Each attack stands beside an honest right answer, which passes, and an honest wrong one, which
fails. A search for the gold answer is first seen to find it where it does lie.
"""

import dataclasses
import os
import sys

import pytest
from rl.attacks import FORGED, SEARCH
from rl.turns import fenced, small_tokenizer, task, turn

from cwm_jax.rl.envs.code.environment import PROFILES, Code
from cwm_jax.rl.envs.code.grading import Grader
from cwm_jax.rl.envs.code.tests import parse_tests

GOLD = f"gold{os.getpid():010d}"  # in no attack's text
LIMITS = dataclasses.replace(
    PROFILES["small"].grading, test_s=3.0, output_bytes=100_000, memory_bytes=512 << 20
)
FUNCTION = {"style": "function", "name": "f", "cases": [{"args": [3], "expected": GOLD}]}
ASSERTS = {"style": "asserts", "entry": "f", "code": f"assert f(3) == {GOLD!r}"}
STDIN = {"style": "stdin", "cases": [{"input": "3\n", "output": GOLD}]}
STYLES = {"function": FUNCTION, "asserts": ASSERTS, "stdin": STDIN}

WRONG = "def f(x):\n    return 'something'"
ATTACKS = {
    "replies on every descriptor at import": FORGED + "forge()\ndef f(x): return 1",
    "replies on every descriptor, then gone": FORGED + "def f(x):\n    forge()\n    os._exit(0)",
    "sys.exit(0) at import": "import sys\nsys.exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit(0) at import": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x): os._exit(0)",
    "SystemExit that is caught as an assertion": "def f(x): raise SystemExit(0)",
    "builtins replaced": """
import builtins
builtins.AssertionError = type("Never", (BaseException,), {})
for name in ("isinstance", "all", "any", "bool", "callable", "hasattr"):
    setattr(builtins, name, lambda *a: True)
def f(x): return 1
""",
    "json replaced": """
import json
json.loads = lambda *a, **k: {"passed": True, "value": None}
json.dumps = lambda *a, **k: '{"passed": true, "calls": 1}'
def f(x): return 1
""",
    "the runner replaced": """
import sys
for module in list(sys.modules.values()):
    for name in ("is_same_value", "is_same_output", "run_tests", "run_code", "call", "told"):
        if hasattr(module, name):
            setattr(module, name, lambda *a: {"passed": True, "calls": 1})
    if hasattr(module, "Proxy"):
        module.Proxy.__call__ = lambda *a: None
def f(x): return 1
""",
    "unittest replaced": """
import unittest
unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a: None
unittest.main = lambda *a, **k: None
def f(x): return 1
""",
    "an object that equals all": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __repr__(self): return "None"
def f(x): return Same()
""",
    "a text that equals all": """
class Same(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = str.__hash__
def f(x): return Same("a")
""",
    "a type that says it is text": """
class Same:
    __class__ = str
    def __eq__(self, other): return True
def f(x): return [Same()]
""",
    "the encoder told another type": """
import sys
program = sys.modules["program"]
program.encode = lambda value: {"eval": "__import__('os')._exit(0)"}
def f(x): return 1
""",
    "the end of an iteration": "def f(x): raise StopIteration",
    "an assertion of its own": "def f(x): raise AssertionError",
    "the tests overwritten": """
import os
for folder in ("/sandbox", "/tmp", "/"):
    for name in ("tests.py", "program.py", "zygote.py", "inside.py", "setup.py"):
        try:
            os.chmod(folder, 0o777)
            open(os.path.join(folder, name), "w").write("def handle(request): return b'{}'")
        except OSError:
            pass
def f(x): return 1
""",
    "the gold answer in files": SEARCH + "def f(x): return search(files())",
    "the gold answer in the environment": SEARCH + "def f(x): return search(environment())",
    "the gold answer in /proc": SEARCH + "def f(x): return search(processes())",
    "the gold answer in memory, the parent's too": SEARCH + "def f(x): return search(memory())",
    "the gold answer in frames": SEARCH + "def f(x): return search(frames())",
    "the gold answer among objects": SEARCH + "def f(x): return search(objects())",
    "a fork that answers once more": FORGED
    + """
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            forge()
            os._exit(0)
        return "something"
    return 1
""",
    "a fork that stays": """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    return 1
""",
    "signals to all": """
import os, signal
def f(x):
    for pid in (os.getppid(), 1, -1, 0):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
            if pid in (1, os.getppid()) or number == signal.SIGTERM:
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
    return 1
""",
    "too large a value": "def f(x): return 'x' * 10_000_000",
    "too much output": "def f(x):\n    while True: print('x' * 1000)",
    "too deep a reply": """
import sys
def f(x): sys.modules["program"].reply(b'{"value": ' + b'[' * 40_000 + b']' * 40_000 + b'}')
""",
    "a reply that is neither": """
import sys
def f(x): sys.modules["program"].reply(b'{"failed": "", "value": 1}')
""",
    "a reply of another kind": """
import sys
def f(x): sys.modules["program"].reply(b'[1]')
""",
    "a reply that is null": """
import sys
def f(x): sys.modules["program"].reply(b'null')
""",
    "a reply that is a number": """
import sys
def f(x): sys.modules["program"].reply(b'1')
""",
    "a reply that is a word": """
import sys
def f(x): sys.modules["program"].reply(b'"failed"')
""",
    "a value that lacks its parts": """
import sys
def f(x): sys.modules["program"].reply(b'{"value": {"complex": []}}')
""",
    "a failure without words": """
import sys
def f(x): sys.modules["program"].reply(b'{"failed": ""}')
""",
    "a verdict of its own": """
import sys
def f(x): sys.modules["program"].reply(b'{"passed": true, "calls": 1, "value": true}')
""",
    "no reply": """
import sys
def f(x): sys.modules["program"].reply(b'')
""",
}


@pytest.fixture(scope="module")
def grader():
    grader = Grader(LIMITS)
    yield grader
    grader.close()


def passes(grader, code, tests):
    return grader.grade(code, parse_tests(tests)).verdict.value == "passed"


def right(name="f"):
    return f"def {name}(x):\n    return {GOLD!r}"


def as_program(code):
    """The same for standard output: what ``f`` returns is printed."""
    return f"{code}\nprint(f(int(input())))"


@pytest.mark.parametrize("style", STYLES)
def test_the_right_answer_passes_and_a_wrong_one_does_not(grader, style):
    tests, form = STYLES[style], as_program if style == "stdin" else str
    assert passes(grader, form(right()), tests)
    assert not passes(grader, form(WRONG), tests)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_no_answer(grader, style, attack):
    tests, form = STYLES[style], as_program if style == "stdin" else str
    assert not passes(grader, form(ATTACKS[attack]), tests)
    assert passes(grader, form(right()), tests), "it left something behind"


@pytest.mark.parametrize(
    "places", ["files", "environment", "processes", "memory", "frames", "objects"]
)
def test_a_search_finds_what_lies_in_its_sandbox(grader, places):
    """Else that it finds no gold answer would say nothing."""
    plant = {
        "files": "open('/tmp/a', 'w').write(x)",
        "environment": "os.environ['A'] = x",
        "processes": "file = open('/tmp/a', 'w+'); print(x, file=file, flush=True)",
    }.get(places, "pass")
    code = SEARCH + f"def f(x):\n    {plant}\n    return search({places}())"
    tests = {"style": "function", "name": "f", "cases": [{"args": [GOLD], "expected": GOLD}]}
    assert passes(grader, code, tests)


@pytest.mark.parametrize("size", [0, 200, 700, 5_000, 80_000])
def test_what_others_answered_is_not_in_the_memory_of_later_candidates(size):
    grader = Grader(LIMITS)  # one sandbox, whose first process has seen only this
    grader._candidates._size = 1
    attack = ATTACKS["the gold answer in memory, the parent's too"]
    try:
        assert passes(grader, right() + "\n#" + GOLD * (size // 14), ASSERTS)
        assert not passes(grader, attack, FUNCTION)
        assert passes(grader, as_program(right()) + f"\nprint(' ' * {size})", STDIN)
        assert not passes(grader, attack, FUNCTION)
        long = {**FUNCTION, "cases": [{"args": [3], "expected": [GOLD] * (size // 20 + 1)}]}
        assert passes(grader, f"def f(x):\n    return [{GOLD!r}] * {size // 20 + 1}", long)
        assert not passes(grader, attack, FUNCTION)
        echo = {"style": "stdin", "cases": [{"input": GOLD + "\n" * size, "output": GOLD}]}
        assert passes(grader, "print(input())", echo)
        assert not passes(grader, attack, FUNCTION)
    finally:
        grader.close()


@pytest.mark.parametrize("style", STYLES)
def test_no_depth_of_a_reply_voids_an_episode(grader, style):
    """At some depth it is read, and can no longer be written."""
    form = as_program if style == "stdin" else str
    limit = sys.getrecursionlimit()
    for depth in [100, 300, *range(limit - 60, limit, 2)]:
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            content = f'{{"value": {opening * depth}1{closing * depth}}}'.encode()
            code = f"import sys\ndef f(x): sys.modules['program'].reply({content!r})"
            assert not passes(grader, form(code), STYLES[style])


@pytest.mark.parametrize("style", STYLES)
def test_the_reason_of_a_failure_can_be_written(grader, style):
    code = "def f(x): raise ValueError(chr(0xd800))"
    code = as_program(code) if style == "stdin" else code
    grade = grader.grade(code, parse_tests(STYLES[style]))
    assert "ValueError" in grade.detail and grade.detail.encode("utf-8")


def test_an_end_of_iteration_does_not_end_a_loop_of_assertions(grader):
    code = f"cases = [(3, {GOLD!r})]\nassert all(map(lambda case: f(case[0]) == case[1], cases))"
    tests = {**ASSERTS, "code": code}
    assert passes(grader, right(), tests) and not passes(grader, WRONG, tests)
    for name in ("StopIteration", "StopAsyncIteration", "GeneratorExit", "AssertionError"):
        assert not passes(grader, f"def f(x): raise {name}", tests)
    forged = b'{"failed": "raised", "type": "StopIteration", "text": ""}'
    reply = f"import sys\ndef f(x): sys.modules['program'].reply({forged!r})"
    assert not passes(grader, reply, tests)


def test_inputs_are_changed_for_nobody_else(grader):
    tests = {**ASSERTS, "code": "a = [1]\nb = f(a)\nassert a == [1] and b == [2]"}
    assert passes(grader, "def f(a): return [2]", tests)
    assert not passes(grader, "def f(a):\n    a[0] = 2\n    return a[:0]", tests)


@pytest.mark.parametrize(
    "text",
    [
        "</think>\n```python\n{wrong}\n```\n```python\n{right}\n```",
        "</think>\n```python\n{right}\n```\n```py\n{wrong}\n```",
        "</think>\n```\n{right}\n```\n```\n{wrong}\n```",
        "```python\n{right}\n```",
        "```python\n{right}\n```\n</think>\n",
        "</think>\n```python\n{right}\n```\n<think>\n```python\n{wrong}\n```",
        "</think>\n```python\n{wrong}\n```\n</think>\n```python\n{right}\n```",
        "</think>\n```python\n{right}\n",
    ],
)
def test_several_blocks_or_open_tags_are_no_answer(grader, text):
    tokenizer = small_tokenizer()
    environment = Code(task(tests=FUNCTION), tokenizer, PROFILES["small"], grader)
    assert environment.step(turn(tokenizer, fenced(right()))).reward == 1
    assert environment.step(turn(tokenizer, fenced(WRONG))).reward == -1
    attack = text.format(right=right(), wrong=WRONG)
    step = environment.step(turn(tokenizer, attack))
    assert step.reward == -1 and step.info["verdict"] == "no answer"
