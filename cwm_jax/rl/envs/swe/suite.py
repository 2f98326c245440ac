"""Hidden tests that are a repository's own: a test command, and the names that have to pass.

The candidate's code is imported by the process that runs these tests, so it shares memory, output
and files with the judge's witness, and what it may not do cannot all be enforced:

* trusted copies of the test files are written after the patch, which may not change tests, what
  runners load by themselves, or shadow their modules;
* every required name has to be reported as passed, so that leaving early helps nothing;
* a canary, a test of a random name that fails, has to be reported as failed: code that turns all
  failures into passes is caught.

What remains possible: code that finds the canary by looking into the test files or the runner, and
forges just the other lines. Calls with known results (`calls`) have no such hole; a repository that
can be tested by them should be.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_UNITTEST = re.compile(r"^(\w+) \(([\w.]+)\)(?:\n(?!\w+ \([\w.]+\)).*)? \.\.\. (\w+)", re.M)
_STATUS = "(PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED)"
_PYTEST = re.compile(rf"^(?:{_STATUS} (\S+?::.+?)(?: - .*)?|(\S+?::.+?) {_STATUS}\b.*)$", re.M)

_DJANGO = re.compile(r"^(?!\w+ \([\w.]+\))(\S.*?) \.\.\. (\w+)", re.M)
_SYMPY = re.compile(r"^(test_\w+) (ok|[FEfXsw])\b", re.M)  # f: expected to fail; w: slow, skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A repository's own tests.

    Attributes:
        command: run in the repository; a ``{canary}`` in it becomes the canary's path, and a
            ``{canary_module}`` its module, without the first folder.
        format: of its output, ``unittest`` (``-v``), ``pytest`` (``-v`` or ``-rA``), or one of
            those that SWE-bench's rows are read into.
        files: texts by path, written after the patch.
        fail_to_pass: names as the format has them.
        pass_to_pass: as well.
        canary: the folder of tests that the command collects from.
    """

    command: str
    format: str
    files: Mapping[str, str]
    fail_to_pass: Sequence[str]
    pass_to_pass: Sequence[str]
    canary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """What a test runner writes.

    Attributes:
        canary: source of a test that fails.
        name: that a test has in its output.
        example: of such a name.
        parse: whether each test passed, by name.
    """

    canary: str
    name: re.Pattern[str]
    example: str
    parse: Callable[[str], dict[str, bool]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What a suite printed, and whether each test passed, by name, without the canary."""

    output: str
    passed: dict[str, bool]


class SuiteFailed(Exception):  # noqa: N818
    """A run of a suite that shows nothing; the text says why.

    Attributes:
        output: what it printed.
        ended: whether the command came to an end.
    """

    def __init__(self, why: str, *, output: str = "", ended: bool = True) -> None:
        super().__init__(why)
        self.output, self.ended = output, ended


def run_suite(workspace: Workspace, tests: Suite, *, timeout_s: float) -> str:
    """Why the tests do not pass; empty if they do.

    Args:
        workspace: with the patch applied; spent afterwards.
        tests: of the task.
        timeout_s: of the command.

    Raises:
        EnvironmentFailure: the workspace failed, or a test file cannot be written.
    """
    try:
        found = suite_results(workspace, tests, timeout_s=timeout_s)
    except SuiteFailed as error:
        return str(error)
    required = [*tests.fail_to_pass, *tests.pass_to_pass]
    wrong = [name for name in required if not found.get(name, False)]
    return f"{len(wrong)} of {len(required)} hidden tests fail: {wrong[0]}" if wrong else ""


def suite_results(workspace: Workspace, tests: Suite, *, timeout_s: float) -> dict[str, bool]:
    """Whether each test that was reported passed, by name; as of `suite_run`."""
    return suite_run(workspace, tests, timeout_s=timeout_s).passed


def suite_run(workspace: Workspace, tests: Suite, *, timeout_s: float) -> SuiteRun:
    """Runs a suite.

    Args:
        workspace, tests, timeout_s: as of `run_suite`; which tests are required plays no part.

    Raises:
        SuiteFailed: the command did not end, or the canary was not reported as failed.
        EnvironmentFailure: as of `run_suite`.
    """
    form = FORMATS[tests.format]
    word = "".join(secrets.choice("bcdfghklmnprst") for _ in range(12))
    canary = f"{tests.canary}/test_{word[:6]}.py"
    a, b = secrets.randbelow(1000), 1000 + secrets.randbelow(1000)
    files = {**tests.files, canary: form.canary.format(word=word, a=a, b=b)}
    for path, text in files.items():
        try:
            workspace.write(posixpath.join(workspace.root, path), text.encode())
        except OSError as error:
            raise EnvironmentFailure(f"the test file {path} cannot be written: {error}") from error
    reply = workspace.run(_filled(tests.command, canary), timeout_s)
    if reply.outcome != "ok":
        why = f"the tests did not come to an end ({reply.outcome}): {reply.detail}"
        raise SuiteFailed(why, output=reply.output, ended=False)
    found = form.parse(reply.output)
    # Some projects run every test, this one too, with several parameters.
    own = [name for name in found if name.partition("[")[0].endswith(f"test_{word}")]
    if {found.pop(name) for name in own} != {False}:
        raise SuiteFailed(
            "a test that fails was not reported as failed: the run is not to be trusted",
            output=reply.output,
        )
    return SuiteRun(output=reply.output, passed=found)


def parse_unittest(output: str) -> dict[str, bool]:
    """Whether each test passed, by ``module.Class.test``."""
    found: dict[str, bool] = {}
    for name, place, status in _UNITTEST.findall(output.replace("\r\n", "\n")):
        key = place if place.endswith(f".{name}") else f"{place}.{name}"  # as before Python 3.11
        found[key] = found.get(key, True) and status == "ok"
    return found


def parse_pytest(output: str) -> dict[str, bool]:
    """Whether each test passed, by its node id."""
    found: dict[str, bool] = {}
    for before, key, other_key, after in _PYTEST.findall(output.replace("\r\n", "\n")):
        key, status = key or other_key, before or after
        found[key] = found.get(key, True) and status == "PASSED"
    return found


def parse_swebench_pytest(output: str) -> dict[str, bool]:
    """As `parse_pytest`; names end at their first blank, as those of SWE-bench's rows do."""
    found: dict[str, bool] = {}
    for name, passed in parse_pytest(output).items():
        key = name.split()[0]
        found[key] = found.get(key, True) and passed
    return found


def parse_django(output: str) -> dict[str, bool]:
    """As `parse_unittest`, and by the line before the status, which may be a docstring's first.

    Names of tests are those of unittest; SWE-bench's rows have docstrings where there are some.
    """
    found = parse_unittest(output)
    for line, status in _DJANGO.findall(output.replace("\r\n", "\n")):
        found[line] = found.get(line, True) and status == "ok"
    return found


def parse_sympy(output: str) -> dict[str, bool]:
    """Whether each function passed, by its name alone: two of one name have to pass both."""
    found: dict[str, bool] = {}
    for name, status in _SYMPY.findall(output.replace("\r\n", "\n")):
        found[name] = found.get(name, True) and status == "ok"
    return found


def _filled(command: str, canary: str) -> str:
    """``{canary_module}`` is the canary's without its first folder: so Django's runner names it."""
    module = canary.removesuffix(".py").partition("/")[2].replace("/", ".")
    return command.replace("{canary}", canary).replace("{canary_module}", module)


_UNITTEST_CANARY = (
    "import unittest\n\n\nclass {word}Test(unittest.TestCase):\n"
    "    def test_{word}(self):\n        self.assertEqual({a}, {b})\n"
)
_PYTEST_CANARY = "def test_{word}():\n    assert {a} == {b}\n"
FORMATS = {
    "unittest": Format(
        canary=_UNITTEST_CANARY,
        name=re.compile(r"\w+(?:\.\w+)+"),
        example="tests.test_module.ModuleTest.test_it",
        parse=parse_unittest,
    ),
    "pytest": Format(
        canary=_PYTEST_CANARY,
        name=re.compile(r"\S+?::.+"),
        example="tests/test_module.py::test_it",
        parse=parse_pytest,
    ),
    "swebench_pytest": Format(
        canary=_PYTEST_CANARY,
        name=re.compile(r"\S+?::\S+"),
        example="tests/test_module.py::test_it",
        parse=parse_swebench_pytest,
    ),
    "django": Format(
        canary=_UNITTEST_CANARY,
        name=re.compile(r".+"),
        example="app.test_module.ModuleTest.test_it",
        parse=parse_django,
    ),
    "sympy": Format(
        canary=_PYTEST_CANARY,
        name=re.compile(r"\w+"),
        example="test_it",
        parse=parse_sympy,
    ),
}
