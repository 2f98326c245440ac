"""Write a program, or a function, that passes tests which are not shown.

A task's data: ``problem``, text; ``tests``, see `tests.py`; perhaps ``starter``, code that the
answer begins with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.rl.environment import Observation, Step, Task
from cwm_jax.rl.envs.answers import NoAnswerError, answer_text, only_code_block
from cwm_jax.rl.envs.code.grading import Grader, GradingLimits, Verdict
from cwm_jax.rl.envs.code.tests import FunctionTests, StdinTests, Tests, parse_tests
from cwm_jax.rl.envs.fields import fields, optional_text, task_of, text
from cwm_jax.rl.envs.prompts import encode_problem
from cwm_jax.tokenizer import Tokenizer

_MIB = 1 << 20
ONE_BLOCK = (
    "Your answer must contain exactly one block of code, which holds the whole solution:\n"
    "```python\n# your code\n```"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeProfile:
    """Limits and form of an episode.

    Attributes:
        max_action_tokens: of the answer.
        max_prompt_tokens: of the problem's message; a longer one loses its beginning.
        grading: what the answer's code may use.
        think: the answer reasons first.
        system_prompt: the dialog begins with the one that asks for reasoning.
    """

    max_action_tokens: int
    max_prompt_tokens: int
    grading: GradingLimits
    think: bool = True
    system_prompt: bool = True


PROFILES = {
    "64k": CodeProfile(  # released: LiveCodeBench with reasoning
        max_action_tokens=64_510,
        max_prompt_tokens=2_048,
        grading=GradingLimits(
            test_s=6.0,
            total_s=None,
            memory_bytes=2_000_000_000,
            output_bytes=16 * _MIB,  # assumed
            calls=1_000,  # assumed
        ),
    ),
    "small": CodeProfile(
        max_action_tokens=512,
        max_prompt_tokens=1_024,
        grading=GradingLimits(
            test_s=2.0, total_s=10.0, memory_bytes=256 * _MIB, output_bytes=_MIB, calls=200
        ),
        system_prompt=False,
    ),
}
PROFILES["direct"] = dataclasses.replace(PROFILES["small"], think=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeData:
    """What a task's data say."""

    problem: str
    tests: Tests
    starter: str


def read_data(task: Task) -> CodeData:
    """What a task's data say.

    Raises:
        ValueError: a key is missing or unknown, a type is another, the tests have no known form.
    """
    return task_of("code", task, _read)


class Code:
    """One answer; +1 if its code passes every test, else -1."""

    def __init__(self, task: Task, tokenizer: Tokenizer, profile: CodeProfile, grader: Grader):
        """``grader``: shared by episodes; made of the profile's limits.

        Raises:
            ValueError: as of `read_data`.
        """
        self._data, self._tokenizer, self._profile = read_data(task), tokenizer, profile
        self._grader = grader

    def start(self) -> Observation:
        profile, data = self._profile, self._data
        tokens = encode_problem(
            self._tokenizer,
            code_question(data.problem, data.tests, data.starter),
            max_tokens=profile.max_prompt_tokens,
            think=profile.think,
            system_prompt=profile.system_prompt,
        )
        return Observation(tokens=tokens, max_action_tokens=profile.max_action_tokens)

    def step(self, action: Sequence[int]) -> Step:
        info: dict[str, Any] = {"pass": False, "answer": None}
        try:
            text = answer_text(action, self._tokenizer, think=self._profile.think)
            code = only_code_block(text)
        except NoAnswerError as error:
            info |= {"verdict": "no answer", "reason": str(error)}
            return Step(observation=None, reward=-1.0, info=info)
        grade = self._grader.grade(code, self._data.tests)
        passed = grade.verdict is Verdict.PASSED
        info |= {
            "pass": passed,
            "answer": code,
            "verdict": grade.verdict.value,
            "reason": "" if passed else f"{grade.verdict.value}: {grade.detail}".rstrip(": "),
            "num_passed": grade.num_passed,
        }
        return Step(observation=None, reward=1.0 if passed else -1.0, info=info)

    def close(self) -> None:
        pass


def code_question(problem: str, tests: Tests, starter: str = "") -> str:
    """Asks for code: what it is to do, what will call or run it, and the answer's form."""
    parts = [problem.strip()]
    if isinstance(tests, StdinTests):
        parts.append(
            "Write a Python program that reads its input from standard input and prints its "
            "answer to standard output."
        )
    else:
        name = tests.name if isinstance(tests, FunctionTests) else tests.entry
        parts.append(f"Write Python code that defines `{name}`; it will be called with tests.")
    if starter:
        parts.append(f"Begin with this code:\n```python\n{starter.rstrip()}\n```")
    return "\n\n".join([*parts, ONE_BLOCK])


def _read(data: Mapping[str, Any]) -> CodeData:
    fields(data, "data", ("problem", "tests"), ("starter",))
    return CodeData(
        problem=text(data["problem"], "problem"),
        tests=parse_tests(data["tests"]),
        starter=optional_text(data, "starter", "starter"),
    )
