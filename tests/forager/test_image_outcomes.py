"""What runs of a project's tests come to, test by test."""

import pytest

from cwm_jax.forager.images.builds import suite_of
from cwm_jax.forager.images.outcomes import flaky, outcomes, share_passing
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.rl.envs.swe.suite import (
    SuiteFailed,
    SuiteRun,
    parse_pytest,
    parse_unittest,
    suite_run,
)
from cwm_jax.sandbox import ShellReply

SUITE = suite_of(Recipe(name="", install=(), command="run", format="pytest", canary="tests"))

PYTEST = """\
tests/test_a.py::test_good PASSED                                        [ 10%]
tests/test_a.py::test_bad[a b] FAILED                                [ 20%]
tests/test_a.py::test_later SKIPPED (needs a device)                     [ 30%]
tests/test_a.py::test_known XFAIL (a bug)                                [ 40%]
tests/test_a.py::test_mended XPASS (a bug)                               [ 50%]
tests/test_b.py::TestB::test_set ERROR                                   [ 60%]
SKIPPED [1] tests/test_a.py:9: needs a device
XFAIL tests/test_a.py::test_known - a bug
FAILED tests/test_a.py::test_bad[a b] - assert 1 == 2
ERROR tests/test_c.py
"""
UNITTEST = """\
test_good (tests.test_a.ATest.test_good) ... ok
test_bad (tests.test_a.ATest.test_bad) ... FAIL
test_later (tests.test_a.ATest.test_later)
With a docstring. ... skipped 'needs a device'
test_known (tests.test_a.ATest) ... expected failure
"""


def test_skipped_and_expected_failures_are_told_from_failures():
    run = SuiteRun(output=PYTEST, passed=parse_pytest(PYTEST))
    found = outcomes(run, "pytest")
    assert found == {
        "tests/test_a.py::test_good": "passed",
        "tests/test_a.py::test_bad[a b]": "failed",
        "tests/test_a.py::test_later": "skipped",
        "tests/test_a.py::test_known": "skipped",
        "tests/test_a.py::test_mended": "failed",
        "tests/test_b.py::TestB::test_set": "failed",
    }
    run = SuiteRun(output=UNITTEST, passed=parse_unittest(UNITTEST))
    found = {
        name.rpartition("_")[2]: outcome for name, outcome in outcomes(run, "unittest").items()
    }
    assert found == {"good": "passed", "bad": "failed", "later": "skipped", "known": "skipped"}


def test_the_share_is_of_tests_that_count():
    assert share_passing({"a": "passed", "b": "failed", "c": "skipped"}) == 0.5
    assert share_passing({"c": "skipped"}) == share_passing({}) == 0.0


def test_a_test_that_differs_or_is_missing_is_flaky():
    first, second = {"a": "passed", "b": "failed", "c": "passed"}, {"a": "passed", "b": "passed"}
    assert flaky(first, second) == ("b", "c") == flaky(second, first)


class Printing:
    """A workspace whose test command says of the canary what it is told to."""

    root = "/tmp/testbed"

    def __init__(self, *endings: str) -> None:
        self._endings, self._name = endings, ""

    def write(self, path: str, content: bytes) -> None:
        self._name = content.decode().split("(")[0].removeprefix("def ")

    def run(self, command: str, timeout_s: float) -> ShellReply:
        lines = [f"tests/a.py::{self._name}{ending}" for ending in self._endings]
        output = "\n".join(["tests/a.py::test_other PASSED", *lines])
        return ShellReply(output=output, exit_code=1, outcome="ok", detail="")


@pytest.mark.parametrize("endings", [(" FAILED",), ("[one] FAILED", "[two] FAILED")])
def test_a_canary_may_be_run_with_parameters(endings):
    run = suite_run(Printing(*endings), SUITE, timeout_s=1)
    assert run.passed == {"tests/a.py::test_other": True}


@pytest.mark.parametrize("endings", [(), (" PASSED",), ("[one] FAILED", "[two] PASSED")])
def test_a_canary_that_does_not_fail_is_a_run_that_shows_nothing(endings):
    with pytest.raises(SuiteFailed, match="not reported as failed"):
        suite_run(Printing(*endings), SUITE, timeout_s=1)
