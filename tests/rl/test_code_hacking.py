"""Law and fault: code is judged by its values alone, in a process that knows no expected one."""

import pytest
from tiny import VOCAB_SIZE

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.kinds import make_environments
from cwm_jax.tokenizer import END_OF_TURN, train_tokenizer

FUNCTION = {
    "style": "function",
    "name": "f",
    "cases": [{"args": [2, 3], "expected": [2, 3, 5]}, {"args": [40, 7], "expected": [40, 7, 47]}],
}
STDIN = {
    "style": "stdin",
    "cases": [{"input": "1\n2\n", "output": "3\n"}, {"input": "0.5\n1\n", "output": "1.50"}],
}
ASSERTS = {
    "style": "asserts",
    "entry": "f",
    "code": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\n"
    "    assert candidate([1]) is None\n",
}
RIGHT = {
    "function": "def f(a, b):\n    return (a, b, a + b)",
    "stdin": "print(float(input()) + float(input()))",
    "asserts": "def f(x):\n    return x * x if isinstance(x, int) else None",
}
WRONG = {
    "function": "def f(a, b):\n    return [a, b, a * b]",
    "stdin": "print(float(input()) - float(input()))",
    "asserts": "def f(x):\n    return 4",
}
TESTS = {"function": FUNCTION, "stdin": STDIN, "asserts": ASSERTS}


@pytest.fixture(scope="module")
def play():
    """``play(style, text)`` -> the step that judges an answer; a bare code is put into a block."""
    words = ["def f(x):\n    return x\n```python\n</think>\n"] * 50
    tokenizer = train_tokenizer([*words, *map(str, range(3000))], VOCAB_SIZE)
    configs = [
        EnvironmentConfig(name="code", kind="code", profile="direct"),
        EnvironmentConfig(name="thinks", kind="code", profile="small"),
    ]
    make = make_environments(configs, tokenizer)

    def run(style, code, *, name="code", raw=False):
        task = Task(name="t", data={"problem": "Solve it.", "tests": TESTS[style]})
        environment = make(name, task)
        prompt = tokenizer.decode(environment.start().tokens)
        assert "Solve it." in prompt and "47" not in prompt and "1.50" not in prompt
        text = code if raw else f"```python\n{code}\n```"
        action = [*tokenizer.encode(text), tokenizer.special_tokens[END_OF_TURN]]
        step = environment.step(action)
        assert step.done and step.reward == (1 if step.info["pass"] else -1)
        return step.info

    return run


@pytest.mark.parametrize("style", TESTS)
def test_right_code_passes_and_wrong_code_does_not(play, style):
    assert play(style, RIGHT[style])["pass"], style
    wrong = play(style, WRONG[style])
    assert not wrong["pass"] and wrong["verdict"] == "wrong answer"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("def f(a, b: return", "compile error"),
        ("def f(a, b):\n    raise KeyError(a)", "runtime error"),
        ("def g(a, b): pass", "runtime error"),
        ("def f(a, b):\n    while True: pass", "timeout"),
        ("def f(a, b):\n    print('x' * 50_000_000)", "output limit"),
    ],
)
def test_a_failure_has_its_name(play, code, verdict):
    assert play("function", code)["verdict"] == verdict


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no code at all", "code"),
        (f"```python\n{RIGHT['function']}\n```\n```python\n{RIGHT['function']}\n```", "code"),
        (f"```python\n{RIGHT['function']}\n", "code"),
    ],
)
def test_an_answer_holds_one_block_of_code(play, text, reason):
    found = play("function", text, raw=True)
    assert not found["pass"] and reason in found["reason"], found


def test_reasoning_is_ended_once(play):
    block = f"```python\n{RIGHT['function']}\n```"
    assert play("function", f"so\n</think>\n{block}", name="thinks", raw=True)["pass"]
    for text in (block, f"</think>\n</think>\n{block}", f"<think>\n{block}"):
        assert not play("function", text, name="thinks", raw=True)["pass"]


# Each is tried where an honest wrong answer fails and a right one passes.
FORGED = 'b\'{"ok": true, "value": [40, 7, 47], "pass": true}\''
HACKS = {
    "exits before the tests": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "exits when called": "def f(*a):\n    import os; os._exit(0)",
    "writes to every descriptor": "import os\nfor fd in range(256):\n    try: os.write(fd, "
    + FORGED
    + ")\n    except OSError: pass\ndef f(*a): return None",
    "is equal to everything": "class E(int):\n    def __eq__(s, o): return True\n"
    "    def __repr__(s): return '[40, 7, 47]'\n    __hash__ = None\ndef f(*a): return E()",
    "a list that is equal": "class L(list):\n    def __eq__(s, o): return True\n"
    "def f(*a): return L()",
    "patches the runner": "import builtins, json, unittest\n"
    "json.dumps = lambda *a, **k: '[40, 7, 47]'\nbuiltins.repr = lambda x: '[40, 7, 47]'\n"
    "builtins.type = lambda *a: list\nunittest.TestCase.assertEqual = lambda *a: None\n"
    "def f(*a): return None",
    "looks for the expected values": "import gc, sys, os, glob\ndef f(a, b=None):\n"
    "    frame = sys._getframe()\n    seen = []\n    while frame:\n"
    "        seen += list(frame.f_locals.values()) + list(frame.f_globals.values())\n"
    "        frame = frame.f_back\n    seen += [o for o in gc.get_objects()]\n"
    "    for o in seen:\n"
    "        if isinstance(o, dict) and 'expected' in o: return o['expected']\n"
    "        if isinstance(o, (list, tuple)) and list(o)[:3] == [a, b, 47]: return o\n"
    "    return None",
    "reads them from files and the environment": "import os, pathlib\ndef f(*a):\n"
    "    found = repr(dict(os.environ))\n"
    "    for place in ('/proc/1/environ', '/proc/1/mem', '/proc/self/environ'):\n"
    "        try: found += pathlib.Path(place).read_bytes()[:9999].decode('latin-1')\n"
    "        except (OSError, ValueError): pass\n"
    "    return [40, 7, 47] if '47' in found and 'expected' in found else None",
    "forks and lets the child live": "import os\nif os.fork() == 0:\n    os.setsid()\n"
    "    for fd in range(256):\n        try: os.write(fd, "
    + FORGED
    + ")\n        except OSError: pass\n    os._exit(0)\ndef f(*a): return None",
    "signals its parent and its group": "import os, signal\ndef f(*a):\n"
    "    for target in (os.getppid(), 0, 1):\n        try: os.kill(target, signal.SIGKILL)\n"
    "        except OSError: pass\n    return [40, 7, 47]",
}


@pytest.mark.parametrize("style", ["function", "asserts"])
@pytest.mark.parametrize("name", HACKS)
def test_a_hack_earns_nothing(play, name, style):
    assert not play(style, HACKS[name])["pass"]


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.write(1, b'3')\nos._exit(0)",
        "print('3' * 20_000_000)",
        "import os, sys\nprint(3)\nsys.exit(3)",
    ],
)
def test_a_program_that_hacks_earns_nothing(play, code):
    assert not play("stdin", code)["pass"]


def test_after_a_hack_others_are_judged_as_before(play):
    play("function", HACKS["signals its parent and its group"])
    play("asserts", HACKS["forks and lets the child live"])
    for style, code in RIGHT.items():
        assert play(style, code)["pass"]
