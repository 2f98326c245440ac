"""Judges code: inputs go into the candidate's sandbox, values come out, and are compared here."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.code.comparison import is_same_output, is_same_value
from cwm_jax.rl.envs.code.inside import encode
from cwm_jax.rl.envs.code.tests import AssertTests, FunctionTests, StdinTests, Tests
from cwm_jax.rl.envs.sandboxes import Sandboxes
from cwm_jax.sandbox import Limits, Outcome, Reply

_PROGRAM = Path(__file__).with_name("inside.py")
_SHOWN_CHARACTERS = 500  # assumed: of what a person reads about a failure
# Assumed: of JSON in JSON. Near Python's limit what could be read could not be written again.
_MAX_DEPTH = 400


class Verdict(enum.Enum):
    """What became of an answer; the value is the word in ``Step.info``."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong answer"
    TIMEOUT = "timeout"
    RUNTIME_ERROR = "runtime error"  # memory included
    COMPILE_ERROR = "compile error"
    OUTPUT_LIMIT = "output limit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradingLimits:
    """What a candidate may use.

    Attributes:
        test_s: processor time of a test, or of a call by an assertion; it may wait as long again.
        total_s: of all tests together; None is ``test_s`` for each of them.
        memory_bytes: of a test.
        output_bytes: printed by a test, or of the value that it returns.
        calls: by the assertions of a problem.
        assertions_s: of all assertions together, whose number is not known, without ``total_s``.
    """

    test_s: float
    total_s: float | None
    memory_bytes: int
    output_bytes: int
    calls: int
    assertions_s: float = 60.0  # assumed: HumanEval's take 0.04 s, at most 0.7 (measured)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grade:
    """The verdict on an answer.

    Attributes:
        verdict: of the first test that failed, else that it passed.
        num_passed: tests before that one; of assertions, the calls that were answered.
        detail: for people.
        returned: by the calls of assertions, as `inside.encode` spells it; nobody trusts it.
    """

    verdict: Verdict
    num_passed: int
    detail: str = ""
    returned: tuple[Any, ...] = ()


class _FailedError(Exception):
    """A test failed: verdict and detail."""


class Grader:
    """Grades answers, for any number of episodes and threads.

    Args:
        limits: of a candidate.
        unsafe: without bubblewrap.
    """

    def __init__(self, limits: GradingLimits, *, unsafe: bool = False):
        self._limits = limits
        self._call_limits = Limits(
            cpu_s=limits.test_s,
            wall_s=2 * limits.test_s,
            memory_bytes=limits.memory_bytes,
            output_bytes=limits.output_bytes,
            reply_bytes=limits.output_bytes,
        )
        # Never one for both: memory that a process has left is found again by its successors.
        self._candidates = Sandboxes(_PROGRAM, limits=self._call_limits, unsafe=unsafe)
        self._assertions = Sandboxes(_PROGRAM, limits=self._call_limits, unsafe=unsafe)

    def grade(self, code: str, tests: Tests) -> Grade:
        """Runs the tests one after another, up to the first that fails.

        Raises:
            EnvironmentFailure: if there is no sandbox, or the tests are not usable.
        """
        run = _Run(self._limits, self._call_limits, self._candidates, code)
        try:
            if isinstance(tests, AssertTests):
                run.assertions(tests, self._assertions)
            elif isinstance(tests, FunctionTests):
                run.calls(tests)
            else:
                run.programs(tests)
        except _FailedError as failure:
            verdict, detail = failure.args
        else:
            verdict, detail = Verdict.PASSED, ""
        return Grade(
            verdict=verdict,
            num_passed=run.num_passed,
            detail=_shown(detail),
            returned=tuple(run.returned),
        )

    def returned(self, code: str, name: str, calls: Sequence[Any]) -> list[Any]:
        """What a function of trusted code returns, as `inside.encode` spells it.

        Args:
            code: of a data set: a reference solution.
            name: of the function.
            calls: as of `AssertTests`.

        Raises:
            EnvironmentFailure: if there is no sandbox, or the code fails.
        """
        run = _Run(self._limits, self._call_limits, self._candidates, code)
        try:
            answers = [run.answer(name, asked) for asked in calls]
            for answer in answers:
                _check_returned(answer)
        except _FailedError as failure:
            raise EnvironmentFailure(f"the reference {name} fails: {failure.args}") from None
        return [answer["value"] for answer in answers]

    def close(self) -> None:
        """Ends the sandboxes; a later answer starts them again."""
        self._candidates.close()
        self._assertions.close()


class _Run:
    """One answer's way through its tests."""

    def __init__(
        self, limits: GradingLimits, call_limits: Limits, candidates: Sandboxes, code: str
    ):
        self._limits, self._call_limits = limits, call_limits
        self._candidates, self._code = candidates, code
        self._used_s, self.num_passed = 0.0, 0
        self.returned: list[Any] = []

    def programs(self, tests: StdinTests) -> None:
        for case in tests.cases:
            reply = self._call(self._candidates, {"code": self._code}, stdin=case.input)
            _check_program(reply)
            printed = reply.stdout.decode(errors="replace")
            if not is_same_output(printed, case.output):
                raise _FailedError(Verdict.WRONG_ANSWER, f"it printed {printed!r}")
            self._passed(len(tests.cases))

    def calls(self, tests: FunctionTests) -> None:
        for case in tests.cases:
            answer = self.answer(tests.name, {"args": encode(case.args), "kwargs": {"dict": []}})
            _check_returned(answer)
            if not is_same_value(answer["value"], case.expected):
                raise _FailedError(Verdict.WRONG_ANSWER, f"it returned {answer['value']!r}")
            self._passed(len(tests.cases))

    def assertions(self, tests: AssertTests, sandboxes: Sandboxes) -> None:
        known: list[tuple[Any, Any]] = []
        request = {"tests": tests.code, "setup": tests.setup, "entry": tests.entry, "known": known}
        for asked in tests.calls:
            self._learn(tests.entry, asked, known)
        while (asked := (message := self._asserted(request, sandboxes)).get("ask")) is not None:
            self._learn(tests.entry, asked, known)
        _check_assertions(message, known)
        self.num_passed = len(known)

    def _learn(self, entry: str, asked: Any, known: list[tuple[Any, Any]]) -> None:
        if len(known) == self._limits.calls:
            raise _FailedError(Verdict.TIMEOUT, f"more than {len(known)} calls")
        answer = self.answer(entry, asked)
        if answer.get("failed") == "compile":
            _check_returned(answer)
        known.append((asked, answer))
        self.returned += [answer["value"]] if "value" in answer else []
        self.num_passed = max(0, len(known) - 1)
        self._check_time(self._limits.assertions_s)

    def _asserted(self, request: dict[str, Any], sandboxes: Sandboxes) -> dict[str, Any]:
        """What the assertions say, given the answers so far."""
        reply = self._call(sandboxes, request)
        message = _object(reply)
        if message is not None:
            return message
        if not request["known"]:  # nothing of the candidate is in it yet
            raise EnvironmentFailure(f"the tests do not run: {reply.outcome} {reply.detail}")
        raise _FailedError(_ENDS.get(reply.outcome, Verdict.WRONG_ANSWER), "in the assertions")

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the candidate's function returns, or how it failed."""
        reply = self._call(self._candidates, {"code": self._code, "name": name, **asked})
        if reply.outcome is not Outcome.OK:
            raise _FailedError(_ENDS.get(reply.outcome, Verdict.RUNTIME_ERROR), reply.detail)
        answer = _object(reply)
        if answer is not None and ("value" in answer) != ("failed" in answer):
            return answer
        raise _FailedError(Verdict.RUNTIME_ERROR, "its reply is no value")

    def _call(self, sandboxes: Sandboxes, request: dict[str, Any], *, stdin: str = "") -> Reply:
        content = stdin.encode(errors="surrogatepass")
        reply = sandboxes.call(request, stdin=content, limits=self._call_limits)
        self._used_s += reply.wall_s
        return reply

    def _passed(self, num_tests: int) -> None:
        self.num_passed += 1
        if self.num_passed < num_tests:
            self._check_time(num_tests * self._limits.test_s)

    def _check_time(self, default_s: float) -> None:
        """Time in sandboxes counts, none of waiting for one."""
        total_s = default_s if self._limits.total_s is None else self._limits.total_s
        if self._used_s > total_s:
            raise _FailedError(Verdict.TIMEOUT, f"more than {total_s} s in all")


_ENDS = {
    Outcome.CPU: Verdict.TIMEOUT,
    Outcome.WALL: Verdict.TIMEOUT,
    Outcome.OUTPUT: Verdict.OUTPUT_LIMIT,
}


def _object(reply: Reply) -> dict[str, Any] | None:
    """What was replied, if it is an object that can be written again.

    An exception would be a failure of the environment, which voids an episode that is lost.
    """
    try:
        found = json.loads(reply.value or b"") if reply.outcome is Outcome.OK else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not _is_deep(found) else None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for item in inner for part in item if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def _shown(text: str) -> str:
    """The end of a text, without halves of characters, which no file takes."""
    return text[-_SHOWN_CHARACTERS:].encode("utf-8", "replace").decode()


def _check_program(reply: Reply) -> None:
    """A program's reply says no more than how it ended: what counts is what it printed."""
    if reply.outcome is Outcome.OK:
        answer = _object(reply)
        if answer is None:
            raise _FailedError(Verdict.RUNTIME_ERROR, "its reply is none")
        _check_returned(answer)
    elif not (reply.outcome is Outcome.EXIT and "status 0 " in reply.detail):  # os._exit(0)
        raise _FailedError(_ENDS.get(reply.outcome, Verdict.RUNTIME_ERROR), reply.detail)


def _check_returned(answer: dict[str, Any]) -> None:
    if "failed" in answer:
        verdict = Verdict.COMPILE_ERROR if answer["failed"] == "compile" else Verdict.RUNTIME_ERROR
        raise _FailedError(verdict, str(answer.get("text")))


def _check_assertions(message: dict[str, Any], known: list[tuple[Any, Any]]) -> None:
    text = _shown(str(message.get("text", "")))
    if why := message.get("unusable"):
        raise EnvironmentFailure(why)
    if not known:
        raise EnvironmentFailure(f"the tests do not call the function: {text}")
    if message.get("passed") is not True:
        raised = message.get("failed") == "raised"
        raise _FailedError(Verdict.RUNTIME_ERROR if raised else Verdict.WRONG_ANSWER, text)
