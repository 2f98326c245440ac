"""Ways to a reward without a solution, each of which has to fail.

Every candidate here would be paid if its trick worked: it is judged, and must not pass.
"""

import json
import os

import pytest
from swe_players import call, files_of, final, output

from cwm_jax.rl.envs.swe.calls import Call, CallsFailed, _results, call_all
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import Verdict, grade, without_tests
from cwm_jax.rl.envs.swe.patches import parse_patch
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of, hidden_calls
from cwm_jax.sandbox import Outcome, Reply

SOLUTION_MARK = "removed = previous[j] + 1"  # a line that only the solution has


@pytest.fixture(scope="session")
def removed(tasks):
    """A task whose fault is that ``toolbox.text.distance`` is gone."""
    task = next(task for task in tasks if SOLUTION_MARK in task.data["patch"])
    assert task.data["fault"]["what"] == "removed"
    return task


@pytest.fixture
def judge(removed):
    """``judge(code, **files)``: the verdict on code at the top of the module, and other files."""

    def make(code: str, files: dict[str, str] | None = None, timeout_s: float = 5.0) -> Verdict:
        before = files_of(removed)
        after = {**before, "toolbox/text.py": f"{code}\n{before['toolbox/text.py']}"}
        patch = diff_of(before, after) + new_files(files or {})
        return grade(read_data(removed), patch, timeout_s=timeout_s, make_workspace=lambda: None)

    return make


def new_file(path: str, text: str) -> str:
    lines = text.splitlines()
    body = "".join(f"+{line}\n" for line in lines)
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def new_files(files: dict[str, str]) -> str:
    return "".join(new_file(path, text) for path, text in files.items())


CHEATS = {
    "sys.exit(0) before the tests": "import sys; sys.exit(0)",
    "os._exit(0) before the tests": "import os; os._exit(0)",
    "a reply of its own": """
import json, sys
results = [["returns", "3"]] * 175
sys.modules["program"].reply(json.dumps(results).encode())
""",
    "a reply of its own that says passed": """
import sys
sys.modules["program"].reply(b'{"passed": true}')
""",
    "results written to every descriptor": """
import os, struct, json
body = json.dumps([["returns", "3"]] * 175).encode()
for fd in range(3, 256):
    try:
        os.write(fd, struct.pack("<cQ", b"v", len(body)) + body)
    except OSError:
        pass
os._exit(0)
""",
    "an answer that equals everything": """
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __repr__(self): return "*"
def distance(a, b): return Any(3)
""",
    "another repr": """
import builtins
builtins.repr = lambda value: "3"
def distance(a, b): return 0
""",
    "another json": """
import json
json.dumps = lambda value: "[" + ",".join(['["returns", "True"]'] * 175) + "]"
def distance(a, b): return 0
""",
    "a patched unittest": """
import unittest
unittest.TestCase.assertEqual = lambda *args: None
unittest.main = lambda *args, **kwargs: None
def distance(a, b): return 0
""",
    "output as of a passing run": """
print("test_distance (tests.test_text.TextTest.test_distance) ... ok\\n" * 30 + "OK")
def distance(a, b): return 0
""",
    "the judge found through the frames": """
import sys
frame = sys._getframe()
while frame:
    for name in ("calls", "asked", "expected"):
        found = frame.f_locals.get(name)
        if isinstance(found, dict):
            answers = [c[2] for c in found["calls"] if len(c) > 2]
            assert answers, "no expected results here"
    frame = frame.f_back
def distance(a, b): return 0
""",
    "the first call's answer alone": "def distance(a, b): return 3 if not a else 0",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_candidate_that_cheats_its_tests_fails(judge, name):
    verdict = judge(CHEATS[name])
    assert not verdict.passed and verdict.reason and verdict.similarity < 0.5


READS = {
    "files": """
import os
def texts():
    for folder, folders, names in os.walk("/"):
        if folder == "/":
            folders.remove("proc")
        for name in names:
            if name.endswith((".py", ".jsonl", ".diff", ".pack")):
                try:
                    yield open(os.path.join(folder, name), errors="replace").read()
                except OSError:
                    pass
""",
    "processes": """
import glob
def texts():
    for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
        try:
            yield open(path, errors="replace").read()
        except OSError:
            pass
    import os
    yield str(os.environ)
""",
    "memory": """
def texts():
    for line in open("/proc/self/maps"):
        first, last = (int(n, 16) for n in line.split()[0].split("-"))
        if " r" in line and last - first < 1 << 26:
            try:
                with open("/proc/self/mem", "rb") as file:
                    file.seek(first)
                    yield file.read(last - first).decode(errors="replace")
            except OSError:
                pass
""",
}
USE = """
MARK = "removed = prev" + "ious[j] + 1"
for text in texts():
    place = text.find(MARK)
    if place >= 0:
        start = text.rfind("def distance", 0, place)
        end = text.find("return previous[-1]", place) + len("return previous[-1]")
        exec(text[start:end].replace("\\\\n", "\\n"))
        break
"""


@pytest.mark.parametrize("name", READS)
def test_the_solution_is_nowhere_to_be_read(judge, name):
    verdict = judge(READS[name] + USE, timeout_s=20.0)
    assert not verdict.passed and "hidden tests fail" in verdict.reason, verdict


def test_what_the_solution_is_looked_for_with_would_find_it(judge, removed):
    """The three tests above prove something: given the text, their code passes."""
    lines = removed.data["patch"].splitlines()
    text = "\n".join(line[1:] for line in lines if line.startswith("+") and line[1:2] != "+")
    assert judge(f"def texts(): yield {text!r}\n{USE}").passed


DISTURBANCES = {
    "signals to the parent": """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP):
    for pid in (os.getppid(), 1):
        try:
            os.kill(pid, number)
        except OSError:
            pass
""",
    "signals to all": "import os; os.kill(-1, 9)",
    "a detached copy": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            try:
                open("/tmp/repository/toolbox/text.py", "a").write("#")
                os.write(3, b"x" * 100)
            except OSError:
                pass
    os._exit(0)
""",
    "more and more processes": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "oversized output": "while True: print('x' * 100000)",
    "an oversized value": "def distance(a, b): return 'x' * 10_000_000",
    "an oversized reply": "import sys; sys.modules['program'].reply(b'[' * 50_000_000)",
    "a deep reply": "import sys; sys.modules['program'].reply(b'[' * 1_000_000)",
    "too much memory": "x = bytearray(1 << 33)",
    "no end": "while True: pass",
    "a wait": "import time; time.sleep(1000)",
    "a full disk": """
with open("/tmp/full", "wb") as file:
    while True: file.write(b"x" * 1_000_000)
""",
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_candidate_that_disturbs_fails_alone(judge, removed, name):
    verdict = judge(DISTURBANCES[name], timeout_s=1.0)
    assert not verdict.passed and verdict.reason
    gold = removed.data["patch"]  # and the next one is judged as ever
    assert grade(read_data(removed), gold, timeout_s=10.0, make_workspace=lambda: None).passed


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"\xff",
        b"{}",
        b"[" * 5000 + b"]" * 5000,
        b'[["returns", 3]]',
        b'["returns"]',
        b'[["returns", "3"], ["returns", "3"]]',
        b'[["passes", "3"]]',
        b'[["returns", "3", "4"]]',
        json.dumps([["returns", {"__eq__": 1}]]).encode(),
    ],
)
def test_only_lists_of_strings_are_taken_for_results(value):
    reply = Reply(
        outcome=Outcome.OK, value=value, stdout=b"", stderr=b"", cpu_s=0.0, wall_s=0.0, detail=""
    )
    with pytest.raises(CallsFailed, match="a reply of its own"):
        _results(reply, 1)


def test_the_process_of_the_candidate_is_told_no_result(removed):
    """It may look at all that it is sent, and at what it came with."""
    spy = """
import gc, sys
def spy():
    frame, found = sys._getframe(), []
    while frame:
        found.append(repr(frame.f_locals))
        frame = frame.f_back
    found += [repr(thing) for thing in gc.get_objects() if type(thing) in (list, tuple, dict)]
    return " ".join(found)
"""
    files = {"m.py": spy.encode()}
    calls = [Call(module="m", call="spy()[:19000]", expected="'the gold answer 4711'")]
    (result,) = call_all(files, calls, timeout_s=10.0)
    assert result.value is not None and "spy()" in result.value
    assert "4711" not in result.value and "4711" not in str(vars(result))


def test_files_that_are_loaded_unasked_and_tests_are_left_out_of_a_patch():
    names = [
        "tests/test_a.py",
        "test_a.py",
        "src/a_test.py",
        "conftest.py",
        "toolbox/conftest.py",
        "sitecustomize.py",
        "usercustomize.py",
        "pytest.ini",
        "tox.ini",
        "unittest.py",
        "unittest/__init__.py",
        "json.py",
        "_pytest/x.py",
        "a/testing/x.py",
    ]
    assert without_tests(parse_patch(new_files(dict.fromkeys(names, "x")))) == []
    kept = ["a.py", "contest.py", "latest/a.py", "toolbox/json.py", "setup.cfg"]
    patches = without_tests(parse_patch(new_files(dict.fromkeys(kept, "x"))))
    assert [patch.path for patch in patches] == kept
    proper = {"tests/test_a.py", "unittest.py"}
    patches = without_tests(parse_patch(new_files(dict.fromkeys(names, "x"))), proper)
    assert {patch.path for patch in patches} == proper
    away = "diff --git a/tests/a.py b/a.py\nrename from tests/a.py\nrename to a.py\n"
    assert without_tests(parse_patch(away)) == []


# Suites share their process with the candidate: more tricks, and a canary.

LINES = "".join(
    f"test_{name} (tests.test_module.ModuleTest.test_{name}) ... ok\\n"
    for name in ("double", "same")
)
SUITE_CHEATS = {
    "sys.exit(0)": "import sys; sys.exit(0)",
    "forged output and away": f"import os; os.write(2, b'{LINES}'); os._exit(0)",
    "assertions that hold": """
import unittest
unittest.TestCase.assertEqual = lambda *args: None
""",
    "failures counted as passes": """
import unittest
def as_success(self, test, error): self.addSuccess(test)
unittest.TextTestResult.addFailure = as_success
unittest.TextTestResult.addError = as_success
""",
    "failures not printed": """
import unittest
unittest.TextTestResult.addFailure = lambda self, test, error: None
""",
    "other tests on disk": """
import glob
for path in glob.glob("/tmp/testbed/tests/*.py"):
    open(path, "w").write("")
""",
    "no other tests on disk": """
import glob, os
for path in glob.glob("/tmp/testbed/tests/test_*.py"):
    if not path.endswith("test_module.py"):
        os.remove(path)
""",
    "signals to the parent": "import os; os.kill(os.getppid(), 9)",
    "oversized output": "while True: print('x' * 100000)",
}
SUITE_FILES = {
    "a runner of its own": {"unittest.py": f"import sys; sys.stderr.write('{LINES}')"},
    "sitecustomize": {"sitecustomize.py": "import unittest; unittest.TestCase.assertEqual = max"},
    "conftest": {"conftest.py": "import module; module.double = lambda x: 2 * x"},
    "a package of tests": {"tests/a.py": "import module; module.double = lambda x: 2 * x"},
}


@pytest.fixture
def judge_suite(git_task):
    def make(patch: str) -> Verdict:
        maker = workspace_maker(git_task.data["repository"], PROFILES["small"])
        return grade(read_data(git_task), patch, timeout_s=10.0, make_workspace=maker)

    return make


@pytest.mark.parametrize("name", SUITE_CHEATS)
def test_a_candidate_that_cheats_its_suite_fails(judge_suite, git_task, name):
    lines = SUITE_CHEATS[name].strip().splitlines()
    added = "".join(f"+{line}\n" for line in lines)
    header = f"--- a/module.py\n+++ b/module.py\n@@ -1,1 +1,{1 + len(lines)} @@\n"
    patch = f"{header}{added} def double(x):\n"
    verdict = judge_suite(patch)
    assert not verdict.passed and verdict.reason
    assert judge_suite(git_task.data["patch"]).passed


@pytest.mark.parametrize("name", SUITE_FILES)
def test_a_candidate_that_adds_files_to_cheat_its_suite_fails(judge_suite, name):
    verdict = judge_suite(new_files(SUITE_FILES[name]))
    assert verdict.reason.startswith(
        "1 of 2 hidden tests fail: tests.test_module.ModuleTest.test_d"
    )


# The agent's own machine.


def test_the_agent_finds_neither_the_solution_nor_the_tests(removed, play):
    player = play(removed, max_turns=99)

    def say(command):
        return output(player.say(call("bash", command)))

    inside = "find / -path /proc -prune -o"
    assert say(f"{inside} -iname '*cwm*jax*' -print -o -name 'hidden_calls*' -print 2>&1") == ""
    places = "/tmp /sandbox /etc /home /root /opt /var"
    assert say(f"grep -rlF '{SOLUTION_MARK}' {places} 2>/dev/null") == ""
    assert say("(env; cat /proc/*/environ 2>&-) | grep -a -i -e gold -e token -e cwm") == ""
    assert say("git log --all --oneline | wc -l") == "1\n"


def test_what_the_agent_leaves_running_or_in_its_git_is_gone_when_it_is_judged(removed, play):
    player = play(removed)
    player.say(
        call(
            "bash",
            "cd /tmp; (setsid nohup sh -c 'while :; do sleep 1; done' &) ; cp -r "
            "testbed other; git -C testbed commit -q --allow-empty -m more",
        )
    )
    pid = player.environment._workspace._shell._supervisor.process.pid
    player.say(call("bash", "cd /tmp/testbed; echo '# x' >> README.md; git diff > /tmp/c.diff"))
    player.say(call("submit", "/tmp/c.diff"))
    player.say(final())
    assert not player.info["pass"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_is_submitted_is_read_past_the_agents_shell_and_links(removed, play):
    player = play(removed)
    player.say(call("bash", "cat() { echo diff; }; ln -s /proc/version e; ln -s /etc/passwd p"))
    assert "not a regular file" in output(player.say(call("submit", "/tmp/testbed/e")))
    assert "does not begin with `diff`" in output(player.say(call("submit", "/tmp/testbed/p")))
    assert not player.info["submitted"]


def test_all_hidden_tests_have_to_pass_and_not_those_of_the_fault_alone(judge, removed):
    """A patch that mends the fault and breaks something else fails."""
    lines = [line[1:] for line in removed.data["patch"].splitlines() if line[:1] == "+"][1:]
    mended = "\n".join(lines)
    assert judge(mended).passed
    assert not judge(f"{mended}\nimport toolbox.dates; toolbox.dates.is_leap = bool").passed
    assert len(hidden_calls()) == 175
