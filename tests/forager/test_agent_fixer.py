"""The fixer: inverses lead back from mutants, and a session mends them by what its tools show."""

import ast

import pytest
from forager.packages_made import COMMAND, FILES, PASSED

from cwm_jax.forager.agent.loop import EpisodeLimits, play
from cwm_jax.forager.agent.policies.edits import edit_of
from cwm_jax.forager.agent.policies.failing_tests import (
    FailingTest,
    first_failed,
    functions_run,
    imported_paths,
    named_test,
    read_run,
    within_class,
)
from cwm_jax.forager.agent.policies.fixer import fixer
from cwm_jax.forager.agent.policies.inverses.ranking import Evidence, ranked
from cwm_jax.forager.agent.policies.scripted import Scripted
from cwm_jax.forager.tasks.statement import Failure, statement
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.mutations import mutations
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of

PATH = "shapes/area.py"
SOURCE = FILES[PATH]
PATHS = [*FILES]
SMALL = '''\
"""Sums."""

import math


def hypotenuse(a, b):
    return math.sqrt(a * a + b * b)


def clipped(value, low, high):
    if value < low:
        return low
    if not value <= high:
        return high
    return value


def scaled(values, factor=2):
    result = []
    step = factor
    for value in values:
        result.append(clipped(value * step, 0, 100))
    return result
'''
# Rules whose inverse is a choice among few; what a removed line said, nobody can know.
INVERTIBLE = {
    "parameter removed", "argument dropped", "arguments exchanged", "arguments reversed",
    "variables swapped", "import dropped", "return dropped", "unary operator", "binary operator",
    "boolean operator", "comparison operator",
}  # fmt: skip


def evidence(source, function, error=""):
    return Evidence(error=error, places=(), run=[("m.py", function)], test=function or source)


def errors_of(mutant):
    """What a test would say first, of the mutants whose error it takes."""
    yield ""
    yield f"TypeError: {mutant.function}() takes 1 positional argument but 2 were given"


@pytest.mark.parametrize("mutant", list(mutations(SMALL)), ids=lambda m: f"{m.rule}: {m.what}")
def test_from_a_mutant_an_inverse_leads_back(mutant):
    whole = ast.dump(ast.parse(SMALL))
    names = [mutant.function] if mutant.function else ["hypotenuse"]
    found = [
        ast.dump(ast.parse(change.draft.source))
        for error in errors_of(mutant)
        for change in ranked({"m.py": mutant.source}, evidence(mutant.source, names[0], error))
    ]
    lost = _lost_for_good(mutant)
    can = mutant.rule in INVERTIBLE or mutant.source == SMALL.replace("    result = []\n", "")
    assert (whole in found) == (can and not lost)


def _lost_for_good(mutant) -> bool:
    """Whether an expression went that is no name: it has to be thought of, not found."""
    if mutant.what == "the parameter factor removed":
        return True  # and its default
    if mutant.rule == "return dropped":
        return "math.sqrt(a * a + b * b)" not in mutant.source
    return mutant.rule == "argument dropped"


def test_a_swap_is_undone_where_a_name_has_become_one_that_nobody_gives():
    source = "def f(a, b):\n    total = a\n    return total + b\n"
    swapped = source.replace("total = a", "a = total").replace("return total", "return a")
    changes = ranked({"m.py": swapped}, evidence(swapped, "f"))
    (change,) = [change for change in changes[:8] if change.draft.source == source]
    assert "`a` and `total` may have been taken for each other" in change.draft.why


def test_what_the_error_names_is_tried_first():
    source = "import math\n\n\ndef f(a):\n    return math.sqrt(a)\n"
    broken = source.removeprefix("import math\n")
    error = "NameError: name 'math' is not defined"
    found = Evidence(error=error, places=[("m.py", 4)], run=[], test="f(4)")
    change = ranked({"m.py": broken}, found)[0]
    assert change.draft.source.startswith("import math\n")
    source = "class A:\n    def __init__(self, b):\n        self.b = b\n\n    def c(self):\n"
    source += "        return self.d\n"
    error = "AttributeError: 'A' object has no attribute 'd'"
    found = Evidence(error=error, places=[("m.py", 6)], run=[], test="A(1).c()")
    assert "        self.d = 0\n" in ranked({"m.py": source}, found)[0].draft.source


def test_functions_that_the_test_does_not_run_are_left_alone():
    changes = ranked({"m.py": SMALL}, evidence(SMALL, "hypotenuse"))
    assert changes
    for change in changes:
        assert "def clipped(value, low, high):\n    if value < low:" in change.draft.source


def test_an_edit_has_lines_around_it_where_the_changed_ones_are_not_the_only_ones():
    before = "a = 1\nb\na = 1\nc\n"
    text = edit_of("m.py", before, "a = 1\nb\na = 2\nc\n")
    assert "=======\nb\na = 2\nc\n>>>>>>>" in text
    assert "SEARCH\nc\n=======\nc\nd\n" in edit_of("m.py", before, before + "d\n")


def test_a_test_is_found_in_an_issue_however_it_is_named():
    node = "The test `tests/test_area.py::AreaTest::test_total` fails for it."
    by_node = named_test(node, PATHS)
    assert (by_node.runner, by_node.names) == ("pytest", ["AreaTest", "test_total"])
    dotted = named_test("see `tests.test_area.AreaTest.test_total`", PATHS)
    assert dotted.arguments(False) == "unittest -q tests.test_area.AreaTest.test_total"
    assert dotted.arguments(True) == "unittest -q tests.test_area"
    inner = named_test("`test_area.AreaTest.test_total` fails", PATHS)
    assert (inner.folder, inner.arguments(False)) == (
        "tests",
        "unittest -q test_area.AreaTest.test_total",
    )
    traceback = 'File "/home/me/project/tests/test_area.py", line 15, in test_total\n'
    by_frame = within_class(named_test(traceback, PATHS), FILES["tests/test_area.py"])
    assert by_frame.names == ["AreaTest", "test_total"]
    failed = first_failed("FAIL: test_total (tests.test_area.AreaTest.test_total)\n", PATHS)
    assert failed.arguments(False) == dotted.arguments(False)
    assert named_test("It is broken: shapes.area.total gives 3.", PATHS) is None
    assert named_test("tests/test_gone.py::test_it fails", PATHS) is None


def test_what_a_run_shows_is_read():
    output = (
        "Traceback (most recent call last):\n"
        '  File "/tmp/testbed/tests/test_area.py", line 9, in test_total\n    total([])\n'
        '  File "/tmp/testbed/shapes/area.py", line 18, in total\n    return x\n'
        "NameError: name 'x' is not defined\n"
    )
    shown = read_run(output, "/tmp/testbed", PATHS)
    assert shown.places == [(PATH, 18)] and shown.error == "NameError: name 'x' is not defined"
    listed = (
        "filename: /tmp/testbed/shapes/area.py, modulename: area, funcname: Square.area\n"
        "filename: /tmp/testbed/tests/test_area.py, modulename: test_area, funcname: setUp\n"
    )
    assert functions_run(listed, "/tmp/testbed") == [(PATH, "Square.area")]
    assert [*imported_paths("from shapes.area import total\nimport os\n", PATHS)] == [PATH]


def test_a_command_says_how_the_test_ended():
    test = FailingTest(path="tests/test_a.py", names=["test_a[b c]"], runner="pytest")
    words = "python -m pytest -q --tb=short -o addopts= -p no:cacheprovider"
    assert f"{words} 'tests/test_a.py::test_a[b c]' 2>&1" in test.command()
    assert test.command().endswith('echo "exit ${PIPESTATUS[0]}"')
    assert test.command(otherwise="git checkout a").endswith("|| git checkout a")


def task(source: str, issue: str) -> Task:
    broken = {**FILES, PATH: source}
    suite = {
        "command": COMMAND,
        "format": "unittest",
        "files": {path: text for path, text in FILES.items() if path.startswith("tests/")},
        "fail_to_pass": list(PASSED),
        "pass_to_pass": [],
        "canary": "tests",
    }
    patch = diff_of(broken, FILES)
    data = {"issue": issue, "repository": {"files": broken}, "patch": patch, "tests": suite}
    return Task(name="t", data=data)


def session(source: str, issue: str, **limits):
    policy = Scripted(fixer(issue))
    of = task(source, issue)
    return play("n", of, policy, policy_name="fixer", limits=EpisodeLimits(**limits))


def issue_of(name: str) -> str:
    test = f"tests.test_area.AreaTest.test_{name}"
    failure = Failure(test=test, checked="self.assertEqual(1, 2)", error=("1 != 2",))
    return statement(failure, kind="operators", num_failing=1, mended=(), seed="0")


@pytest.mark.parametrize(
    ("old", "new", "issue"),
    [
        ("self.side * self.side", "self.side + self.side", issue_of("square")),
        (
            "return width - height",
            "return width + height",
            "`tests/test_area.py::AreaTest::test_scaled`",
        ),
        ("    return result\n", "", "I get None from total()."),
        ("def area(shape)", "def area()", 'File "tests/test_area.py", line 9, in test_square'),
    ],
)
def test_a_session_mends_a_fault_and_shows_how(old, new, issue):
    assert SOURCE.count(old) == 1
    row = session(SOURCE.replace(old, new), issue)
    assert (row.outcome, row.solved) == ("finished", True)
    calls = [m.content for m in row.messages if m.is_assistant]
    assert "git ls-files" in calls[0] and "git diff" in calls[-2] and "passes" in calls[-1]
    assert any("<tool: edit>" in call for call in calls)


def test_a_session_is_the_same_each_time_and_changes_nothing_where_it_fails():
    cut = SOURCE.index("def scaled")
    rows = [session(SOURCE[:cut], issue_of("scaled")) for _ in range(2)]
    assert rows[0] == rows[1]
    assert (rows[0].outcome, rows[0].reason) == ("finished", "the patch changes no file")


def test_nothing_is_done_where_no_test_fails():
    row = session(f"{SOURCE}\n# A note.\n", issue_of("total"))
    assert "no test that fails" in row.messages[-1].content
    assert not any("<tool: edit>" in message.text for message in row.messages)
